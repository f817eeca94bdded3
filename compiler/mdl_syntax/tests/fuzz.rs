//! A deterministic little fuzzer: no text makes the front end panic, and what parses has a
//! canonical form that formatting keeps and that has the same tree.

use mdl_syntax::token::Kind;
use mdl_syntax::*;

/// xorshift64*, so that every run sees the same cases.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn corpus() -> Vec<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut files = Vec::new();
    for folder in ["stdlib", "models"] {
        for entry in std::fs::read_dir(format!("{root}/{folder}")).expect("a folder") {
            let path = entry.expect("an entry").path();
            files.push(std::fs::read_to_string(&path).expect("a text"));
        }
    }
    files.sort();
    files.push(include_str!("comments.mdl").to_string());
    files
}

/// The tree without its places, which formatting changes, and the texts of all comments.
fn essence(text: &str) -> (String, Vec<String>) {
    let mut sink = Sink::default();
    let module = parse(FileId(0), text, &mut sink);
    assert!(!sink.has_errors(), "{text}\n{:#?}", sink.diagnostics);
    let tree = print_ast(&module);
    let lines = tree.lines().map(|line| match line.rsplit_once(" @") {
        Some((line, range)) if range.starts_with(|c: char| c.is_ascii_digit()) => line,
        _ => line,
    });
    let tree = lines.collect::<Vec<_>>().join("\n");
    let tokens = lex(FileId(0), text, &mut sink);
    let comments = tokens.tokens.iter().filter(|token| token.kind.is_comment());
    (tree, comments.map(|token| token.text(text).to_string()).collect())
}

/// Everything that must hold for any text at all.
fn check(text: &str) -> bool {
    let mut sources = SourceMap::default();
    let file = sources.add("fuzz.mdl", text);
    let mut sink = Sink::default();
    let module = parse(file, text, &mut sink);
    print_ast(&module);
    for diagnostic in &sink.diagnostics {
        assert!(codes::find(diagnostic.code).is_some(), "{}", diagnostic.code);
        assert!(!diagnostic.message.contains('\u{1b}'));
        for label in &diagnostic.labels {
            assert!(label.span.start <= label.span.end && label.span.end as usize <= text.len());
        }
        let shown = render(diagnostic, &sources, false);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
    let formatted = fmt(text);
    assert_eq!(formatted.is_ok(), !sink.has_errors(), "{text}");
    let Ok(formatted) = formatted else {
        return false;
    };
    let again = fmt(&formatted).unwrap_or_else(|sink| {
        panic!("from\n{text}\nto\n{formatted}\n{:#?}", sink.diagnostics);
    });
    assert_eq!(again, formatted, "from\n{text}");
    assert_eq!(essence(&formatted), essence(text), "from\n{text}\nto\n{formatted}");
    assert!(formatted.lines().all(|line| line.trim_end() == line));
    true
}

#[test]
fn random_bytes_do_no_harm() {
    let mut random = Random(1);
    for _ in 0..1500 {
        let len = random.below(200);
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        check(&String::from_utf8_lossy(&bytes));
        let ascii: String = (0..len).map(|_| (random.below(96) as u8 + 31) as char).collect();
        check(&ascii);
    }
}

#[test]
fn token_soup_does_no_harm() {
    const SOUP: &[&str] = &[
        "use", "config", "fn", "block", "model", "preset", "let", "axis", "if", "else", "and",
        "or", "not", "true", "inf", "as", "assert", "from", "init", "param", "size", "a", "b", "x",
        "1", "2.5", "\"t\"", "\"", "// c\n", "/// d\n", "//! m\n", "(", ")", "[", "]", "{", "}",
        ",", ":", ".", "..", "->", "@", "kernel", "=", "==", "<", "+", "-", "*", "/", "\n", "\n",
        "\n\n", "é",
    ];
    let mut random = Random(2);
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..random.below(60) {
            text.push_str(random.pick(SOUP));
            text.push_str(random.pick(&["", " ", " "]));
        }
        check(&text);
    }
}

#[test]
fn mutations_of_the_repository_do_no_harm() {
    let files = corpus();
    let mut random = Random(3);
    let mut parsed = 0;
    for _ in 0..1500 {
        let text = &files[random.below(files.len())];
        let mut sink = Sink::default();
        let tokens = lex(FileId(0), text, &mut sink).tokens;
        let mut text = text.clone();
        for _ in 0..1 + random.below(3) {
            let (one, two) = (random.pick(&tokens), random.pick(&tokens));
            let from = two.text(&text).to_string();
            let range = one.start as usize..one.end as usize;
            if text.get(range.clone()).is_none() {
                continue;
            }
            match random.below(3) {
                0 => text.replace_range(range, ""),
                1 => text.replace_range(range, &from),
                _ => text.insert_str(range.start, &(from + " ")),
            }
        }
        parsed += usize::from(check(&text));
    }
    assert!(parsed > 50, "only {parsed} mutations parsed");
}

/// The same tokens with other blanks, and comments in between.
fn messy(text: &str, random: &mut Random) -> String {
    let mut sink = Sink::default();
    let tokens = lex(FileId(0), text, &mut sink).tokens;
    let mut out = String::new();
    let mut last = tokens[0].start;
    let mut after_comment = false;
    let mut in_doc = false;
    for token in tokens {
        let glued = last == token.start;
        last = token.end;
        let bound = matches!(token.kind, Kind::ParenOpen | Kind::BracketOpen | Kind::Minus);
        let comment = token.kind.is_comment();
        let breaks = token.first_on_line && (bound || comment);
        if breaks || after_comment {
            out.push_str(random.pick(&["\n", "\n\n\n", "\n   "]));
        } else if bound || comment {
            out.push_str(if glued { "" } else { random.pick(&[" ", "    "]) });
        } else if !in_doc && random.below(40) == 0 {
            out.push_str(random.pick(&[" // behind\n", "\n // above\n\n", "\n//\n // b\n"]));
        } else if glued && random.below(8) > 0 {
        } else {
            out.push_str(random.pick(&[" ", " ", "  ", "\t", "\n", "\r\n ", "\n\n\n"]));
        }
        out.push_str(token.text(text));
        after_comment = comment;
        in_doc = matches!(token.kind, Kind::Doc | Kind::ModuleDoc);
    }
    out
}

#[test]
fn other_blanks_and_comments_give_the_same_tree() {
    let files = corpus();
    let mut random = Random(4);
    for file in &files {
        assert!(check(file), "{file}");
    }
    for round in 0..60 {
        for file in &files {
            let text = messy(file, &mut random);
            let mut sink = Sink::default();
            parse(FileId(0), &text, &mut sink);
            assert!(check(&text), "round {round}\n{text}\n{:#?}", sink.diagnostics);
            assert_eq!(essence(&text).0, essence(file).0, "{text}");
        }
    }
}
