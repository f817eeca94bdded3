//! Every error code has a page whose example fails with exactly this code and whose fix is clean;
//! and what the repository itself holds is clean.

mod front_end;

use front_end::{check, folder};
use mdl_check::config::{Source, bind};
use mdl_driver::front::Front;
use mdl_syntax::ast::ItemKind;
use mdl_syntax::codes::CODES;

/// The fenced `mdl` block below a heading.
fn block<'p>(page: &'p str, heading: &str) -> Option<&'p str> {
    let (_, below) = page.split_once(&format!("## {heading}\n"))?;
    let (_, from) = below.split_once("```mdl\n")?;
    from.split_once("```").map(|(text, _)| text)
}

/// What stands behind a header comment such as `// preset: large`.
fn header<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let first = text.lines().next()?.strip_prefix("// ")?;
    first.strip_prefix(name)?.strip_prefix(": ")
}

/// The text that a `// limit: …` line stands for.
fn large(what: &str) -> String {
    match what {
        "a file of 16,777,217 bytes" => format!("//{}", " ".repeat((16 << 20) - 1)),
        "a file of 4,000,001 tokens" => "a ".repeat(4_000_001),
        "a list of 65,537 elements" => {
            let args = vec!["x"; 65_537].join(",\n    ");
            format!("fn f(x: []) -> [] = g({args})\n")
        }
        other => panic!("no text stands for `{other}`"),
    }
}

/// Checks a block of a page as its header comment says.
fn run(text: &str) -> Front {
    if let Some(what) = header(text, "limit") {
        return check("large.mdl", &large(what), &[]);
    }
    let name = header(text, "file").unwrap_or("page.mdl");
    if let Some(json) = header(text, "config.json") {
        let mut front = Front::load(name, text, &|_| None);
        let json = serde_json::from_str(json).expect("the header holds JSON");
        let items: Vec<_> =
            front.program.root_items().map(|(item, it)| (item, it.clone())).collect();
        for (item, it) in items {
            if matches!(it.kind, ItemKind::Config(_)) {
                bind(&front.program, item, &Source::Json(&json), it.span, &mut front.sink);
            }
        }
        return front;
    }
    let mut front = check(name, text, &[(name, text)]);
    if let Some(preset) = header(text, "preset") {
        front.preset(preset);
    }
    front
}

fn codes_of(front: &Front) -> Vec<&'static str> {
    let mut codes: Vec<_> = front.sink.diagnostics.iter().map(|d| d.code).collect();
    codes.dedup();
    codes
}

#[test]
fn examples_fail_with_their_code_and_fixes_are_clean() {
    let mut wrong = String::new();
    for code in CODES.iter().filter(|c| c.id < "E0500") {
        assert!(code.page.starts_with(&format!("# {}: {}\n", code.id, code.title)), "{}", code.id);
        for (heading, wanted) in [("Example", vec![code.id]), ("Fix", vec![])] {
            let Some(text) = block(code.page, heading) else {
                wrong.push_str(&format!("{}: no block under {heading}\n", code.id));
                continue;
            };
            let front = run(text);
            if codes_of(&front) != wanted {
                wrong.push_str(&format!("{} {heading}:\n{}\n", code.id, front.report(false)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_page_says_what_it_means_and_how_to_fix_it() {
    for code in CODES {
        for heading in ["## What it means\n", "## Example\n", "## Fix\n"] {
            assert!(code.page.contains(heading), "{} lacks {heading}", code.id);
        }
        assert!(!code.title.ends_with('.'), "{}", code.id);
    }
    assert!(CODES.windows(2).all(|pair| pair[0].id < pair[1].id), "codes are in order");
}

#[test]
fn the_standard_library_and_the_models_are_clean() {
    for folder_name in ["stdlib", "models"] {
        for (name, text) in folder(folder_name) {
            let front = check(&name, &text, &[]);
            assert!(front.sink.diagnostics.is_empty(), "{}", front.report(false));
        }
    }
}

/// A text up to its first preset and the comment above that.
fn without_presets(text: &str) -> String {
    let bare = text.split("\npreset ").next().expect("there is a first part");
    let kept: Vec<&str> = bare.lines().collect();
    let comments = kept.iter().rev().take_while(|line| line.starts_with("//")).count();
    kept[..kept.len() - comments].join("\n") + "\n"
}

/// A model is checked without its presets too: sizes are made up then.
#[test]
fn models_without_presets_are_clean_and_their_mistakes_are_found() {
    for (name, text) in folder("models") {
        let bare = without_presets(&text);
        let front = check(&name, &bare, &[]);
        assert!(front.sink.diagnostics.is_empty(), "{}", front.report(false));
    }
    let (_, llama) =
        folder("models").into_iter().find(|(n, _)| n == "models/llama.mdl").expect("it");
    let bare = without_presets(&llama);
    let broken =
        bare.replace("wk: param[kv_heads, head, hidden]", "wk: param[kv_heads, head, ffn]");
    assert_ne!(broken, bare);
    let front = check("llama.mdl", &broken, &[]);
    assert_eq!(codes_of(&front), ["E0303"], "{}", front.report(false));
}
