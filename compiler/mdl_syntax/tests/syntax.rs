//! What the grammar says, what its errors say, and the limits at the limit and one beyond.

use mdl_syntax::codes::CODES;
use mdl_syntax::*;

fn faults(text: &str) -> Vec<(&'static str, String)> {
    let mut sink = Sink::default();
    parse(FileId(0), text, &mut sink);
    sink.diagnostics.into_iter().map(|d| (d.code, d.message)).collect()
}

fn codes(text: &str) -> Vec<&'static str> {
    faults(text).into_iter().map(|(code, _)| code).collect()
}

fn result_of(expr: &str) -> String {
    let mut sink = Sink::default();
    let text = format!("fn f() = {expr}");
    let module = parse(FileId(0), &text, &mut sink);
    assert!(sink.diagnostics.is_empty(), "{expr}: {:#?}", sink.diagnostics);
    let tree = print_ast(&module);
    tree.lines().last().and_then(|line| line.strip_prefix("  = ")).expect("a result").to_string()
}

#[test]
fn operators_bind_as_the_reference_says() {
    assert_eq!(result_of("a + b * c - d"), "(- (+ a (* b c)) d)");
    assert_eq!(result_of("not a == b and c or d"), "(or (and (== (not a) b) c) d)");
    assert_eq!(result_of("a / b / c else d else e"), "(else (else (/ (/ a b) c) d) e)");
    assert_eq!(result_of("-x.f32 * 2"), "(* (- x.f32) 2)");
    assert_eq!(result_of("(a + b) * c"), "(* (+ a b) c)");
    assert_eq!(result_of("a\n + b"), "(+ a b)");
    assert_eq!(result_of("a < b and b < c"), "(and (< a b) (< b c))");
}

#[test]
fn brackets_hold_axes_before_a_call_and_changes_elsewhere() {
    assert_eq!(result_of("f[T, S = T](x, mask: c)"), "f[T, S = T](x, mask: c)");
    assert_eq!(result_of("k[S = T].f32"), "(reaxis k [S = T]).f32");
    assert_eq!(
        result_of("x[a * b = h, i = h from 2 * j]"),
        "(reaxis x [a * b = h, i = h from (* 2 j)])"
    );
    assert_eq!(codes("fn f() = x[a * b](y)"), ["E0105"]);
    assert_eq!(codes("fn f() = x[a]"), ["E0106"]);
}

#[test]
fn statements_end_where_a_line_starts_with_a_bracket_or_minus() {
    let text = "fn f() {\n    let a = b\n    (a, -c)\n}\nfn g() {\n    let a = b\n    -a\n}\n";
    assert_eq!(codes(text), Vec::<&str>::new());
    let found = faults("fn f() = (a\n - b)");
    assert_eq!(found[0].1, "expected `)` or `,`, found `-`");
}

#[test]
fn one_file_gives_several_errors() {
    let text = "fn f() = max(x y)
fn g(x: ) = 1
block B() {
    a param[D]
    b: param[D] as 3

    fn m() {
        let a = (1 2)
        let = 3
        a
    }
}
config C {
    a: size 4
    b: size = = 3
}
preset p: C { a = , b = 2 }
fn h( = 1
fn i() = 1
fn j() = 1)";
    let found = faults(text);
    let messages: Vec<_> = found.iter().map(|(_, message)| message.as_str()).collect();
    let expected = [
        "expected `)`, `,` or `:`, found `y`",
        "expected a type, found `)`",
        "expected `:`, found `param`",
        "expected a text in quotes, found `3`",
        "expected `)` or `,`, found `2`",
        "expected a name or `(`, found `=`",
        "expected a name, `,`, `=` or `assert`, found `4`",
        "expected an expression, found `=`",
        "expected an expression, found `,`",
        "`(` is not closed",
        "`)` closes nothing",
    ];
    assert_eq!(messages, expected);
}

#[test]
fn an_item_that_is_broken_spares_its_neighbours() {
    let mut sink = Sink::default();
    let text = "fn a() = 1\nblock B( {\n    fn m() = 1\n}\nfn b() = 2\npreset p C {}\nfn c() = 3";
    let module = parse(FileId(0), text, &mut sink);
    let good = module.items.iter().filter(|item| matches!(item.kind, ast::ItemKind::Fn(_)));
    assert_eq!(good.count(), 3, "{}", print_ast(&module));
    assert_eq!(sink.diagnostics.len(), 2, "{:#?}", sink.diagnostics);
}

#[test]
fn docs_go_to_what_they_stand_above() {
    let text = "//! Module.\n//! More.\n\n/// Item.\nconfig C {\n    /// Field.\n    a: size\n}\n";
    let mut sink = Sink::default();
    let module = parse(FileId(0), text, &mut sink);
    assert_eq!(module.doc, "Module.\nMore.");
    assert_eq!(module.items[0].doc, "Item.");
    assert!(print_ast(&module).contains("doc \"Field.\""));
    assert_eq!(codes("fn f() = 1 /// behind\n"), ["E0108"]);
    assert_eq!(codes("fn f() = 1\n//! late\n"), ["E0108"]);
}

#[test]
fn limits_hold_at_the_limit_and_break_one_beyond() {
    let nested = |n| format!("fn f() = {}x{}", "(".repeat(n), ")".repeat(n));
    assert!(codes(&nested(64)).is_empty());
    assert_eq!(codes(&nested(65)), ["E0007"]);
    let name = |n| format!("fn {}() = 1", "a".repeat(n));
    assert!(codes(&name(256)).is_empty());
    assert_eq!(codes(&name(257)), ["E0006"]);
    let sum = |n| format!("fn f() = x{}", " + x".repeat(n));
    // The parentheses of the function are one more.
    assert!(codes(&sum(256)).is_empty());
    assert_eq!(codes(&sum(257)), ["E0009"]);
    let list = |n: usize| format!("fn f() = g({}x)", "x, ".repeat(n - 1));
    assert!(codes(&list(65_536)).is_empty());
    assert_eq!(codes(&list(65_537)), ["E0008"]);
    let items = |n| "fn f() = 1\n".repeat(n);
    assert!(codes(&items(65_536)).is_empty());
    assert_eq!(codes(&items(65_537)), ["E0008"]);
    let fields = |n: usize| format!("config C {{\n{}}}", "a: size\n".repeat(n));
    assert!(codes(&fields(65_536)).is_empty());
    assert_eq!(codes(&fields(65_537)), ["E0008"]);
}

#[test]
fn a_file_has_a_largest_size_and_a_largest_number_of_tokens() {
    let size = |n| " ".repeat(n);
    assert!(codes(&size(16 << 20)).is_empty());
    assert_eq!(codes(&size((16 << 20) + 1)), ["E0004"]);
    let count = |n: usize| {
        let mut sink = Sink::default();
        let tokens = lex(FileId(0), &"/ ".repeat(n), &mut Sink::default());
        let all = lex(FileId(0), &"x ".repeat(n), &mut sink);
        (tokens.within_limits, all.within_limits, sink.diagnostics.first().map(|d| d.code))
    };
    assert_eq!(count(4_000_000), (false, true, None));
    assert_eq!(count(4_000_001), (false, false, Some("E0005")));
}

#[test]
fn operators_without_brackets_cannot_overflow_the_stack() {
    for piece in ["-", "not ", "if ", "x.", "x + ", "x()", "x[a]", "x else "] {
        let text = format!("fn f() = {}", piece.repeat(400_000 / piece.len()));
        assert!(!codes(&text).is_empty(), "{piece}");
        assert!(fmt(&text).is_err());
    }
}

#[test]
fn a_picture_names_the_place_and_the_page() {
    let mut sources = SourceMap::default();
    let file = sources.add("models/x.mdl", "\n\nfn f(x: [B, T]) = max(\"\u{1b}\" y)\n");
    let mut sink = Sink::default();
    parse(file, sources.text(file), &mut sink);
    let shown = render(&sink.diagnostics[0], &sources, false);
    let expected = "error[E0101]: expected `)` or `,`, found `y`\n   \
        ╭─[ models/x.mdl:3:27 ]\n 3 │fn f(x: [B, T]) = max(\" \" y)\n   \
        │                          ╰─ expected `)` or `,`\n  see: mdlc explain E0101\n";
    assert_eq!(shown, expected);
}

#[test]
fn a_picture_of_a_very_long_line_is_left_out() {
    let mut sources = SourceMap::default();
    let text = format!("fn f() = g(x y{})", " ".repeat(1 << 20));
    let file = sources.add("long.mdl", text);
    let mut sink = Sink::default();
    parse(file, sources.text(file), &mut sink);
    let shown = render(&sink.diagnostics[0], &sources, false);
    assert!(shown.contains("\n  long.mdl:1:14: expected"), "{shown}");
}

/// The fenced blocks of a page: the example and the fix.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```mdl\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|b| b.0).collect()
}

#[test]
fn every_page_has_its_headings_and_examples_that_parse() {
    let mut last = "";
    for code in CODES {
        assert!(code.id > last, "{} is out of order", code.id);
        last = code.id;
        let title = format!("# {}: {}\n\n## What it means\n\n", code.id, code.title);
        assert!(code.page.starts_with(&title), "{}", code.id);
        assert!(
            code.page.contains("\n## Example\n") && code.page.contains("\n## Fix\n"),
            "{}",
            code.id
        );
        // Pages of run-time codes show commands instead of modules.
        if code.id >= "E0900" {
            continue;
        }
        let blocks = blocks(code.page);
        assert_eq!(blocks.len(), 2, "{}", code.id);
        assert_eq!(faults(blocks[1]), [], "{}", code.id);
        // E0109 is about where a module lies, which only the checker knows.
        if code.id < "E0109" && !blocks[0].starts_with("// limit:") {
            assert_eq!(codes(blocks[0]), [code.id]);
        } else {
            assert_eq!(faults(blocks[0]), [], "{}", code.id);
        }
    }
}
