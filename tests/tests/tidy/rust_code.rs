//! Just enough Rust to measure it: where literals and comments are, where functions end.

pub struct Function {
    pub name: String,
    pub first_line: usize,
    pub last_line: usize,
}

/// The functions with a body, found by counting braces in blanked code.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let before = code[..start].chars().next_back();
        let rest = &code[start + 3..];
        let name: String = rest.chars().take_while(|c| is_word_char(*c)).collect();
        if before.is_some_and(is_word_char) || name.is_empty() {
            continue;
        }
        if let Some(length) = body_end(rest) {
            let first_line = code[..start].matches('\n').count() + 1;
            let last_line = first_line + rest[..length].matches('\n').count();
            found.push(Function { name, first_line, last_line });
        }
    }
    found
}

/// Where the body closes; nothing for a declaration, which ends in a semicolon.
fn body_end(rest: &str) -> Option<usize> {
    let mut parens = 0;
    let mut braces = 0;
    for (at, c) in rest.char_indices() {
        match c {
            '(' | '[' => parens += 1,
            ')' | ']' => parens -= 1,
            ';' if parens == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && parens == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_word_char) && !after.is_some_and(is_word_char)
    })
}

/// Replaces comments and the contents of literals by spaces and keeps every line break.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        match end {
            Some(end) => {
                out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends, if one starts there.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    let after_word = at > 0 && is_word_char(chars[at - 1]);
    match chars[at] {
        '/' if next == Some('/') => Some(find(chars, at, |rest| rest[0] == '\n')),
        '/' if next == Some('*') => Some(block_comment_end(chars, at)),
        '"' => Some(quoted_end(chars, at, '"')),
        '\'' if next == Some('\\') => Some(quoted_end(chars, at, '\'')),
        // A quote two on closes a character; otherwise this is a lifetime.
        '\'' if chars.get(at + 2) == Some(&'\'') => Some(at + 3),
        'r' if !after_word || at > 0 && chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if chars.get(at + 1 + hashes) != Some(&'"') {
                return None;
            }
            let closes = |rest: &[char]| {
                rest[0] == '"'
                    && rest[1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
            };
            let close = find(chars, at + 2 + hashes, closes);
            Some((close + 1 + hashes).min(chars.len()))
        }
        _ => None,
    }
}

/// The first place from `from` on where `found` holds for the rest; the end where it never does.
fn find(chars: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|at| found(&chars[*at..])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

#[test]
fn literals_and_comments_are_blanked() {
    // A text, and the part of it that turns into spaces.
    let cases = [
        ("a // unsafe", "// unsafe"),
        ("a /* /* { */ } */ b", "/* /* { */ } */"),
        (r#"f("}\"{") + 1"#, r#""}\"{""#),
        (r###"f(r#"a"b"#)"###, r###"r#"a"b"#"###),
        ("let c: &'a str = '{';", "'{'"),
        (r"'\'' }", r"'\''"),
        ("x \"a\nb\" c", "\"a\nb\""),
    ];
    for (text, literal) in cases {
        let spaces: String = literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        assert_eq!(blank(text), text.replace(literal, &spaces), "of {text}");
    }
}

#[test]
fn functions_are_measured_from_signature_to_brace() {
    let code = "fn a() {\n    if x {\n    }\n}\ntrait T {\n    fn b(x: [u8; 2]);\n}\n\
                fn c<F: Fn(u8) -> u8>(f: fn(u8))\nwhere\n{ }\n";
    let seen: Vec<(String, usize, usize)> =
        functions(code).into_iter().map(|f| (f.name, f.first_line, f.last_line)).collect();
    assert_eq!(seen, [("a".to_string(), 1, 4), ("c".to_string(), 8, 10)]);
}

#[test]
fn words_have_borders() {
    assert!(has_word("x = unsafe { y }", "unsafe"));
    assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
}
