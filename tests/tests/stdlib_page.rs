//! `docs/stdlib.md` is written from the standard library: signatures, members, and doc comments.
//!
//! `MDL_BLESS=1` rewrites it. An item without a doc comment fails.

use mdl_driver::embedded;
use mdl_syntax::ast::{Fn, Item, ItemKind, Module};
use mdl_syntax::diag::Sink;
use mdl_syntax::span::{FileId, Span};
use std::path::Path;

const PAGE: &str = "docs/stdlib.md";

const HEAD: &str = "# The standard library

This page is made from the doc comments of `stdlib/*.mdl`; change it there.
Every function has its axes in brackets, and its shapes are those of its signature: `..` stands \
for any other axes.
A doc comment has the formula and where it is from.
";

fn text_of(text: &str, span: Span) -> &str {
    &text[span.start as usize..span.end as usize]
}

/// What is before the body: up to `=` or `{` outside of brackets, on one line.
fn signature(text: &str) -> String {
    let mut depth = 0;
    let end = text.char_indices().find(|(_, c)| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(c, '=' | '{')
    });
    let head = &text[..end.map_or(text.len(), |(at, _)| at)];
    let words: Vec<&str> = head.split_whitespace().collect();
    words.join(" ").replace("( ", "(").replace(" )", ")")
}

fn method(text: &str, function: &Fn) -> String {
    format!("    {}\n", signature(text_of(text, function.span)))
}

/// Members and fields as they stand in the source, without their doc comments and columns.
fn entry(text: &str, span: Span) -> String {
    let words: Vec<&str> = text_of(text, span).split_whitespace().collect();
    format!("    {}\n", words.join(" "))
}

/// The item's name, and its signature with members and methods.
fn shown(text: &str, item: &Item) -> Option<(String, String)> {
    let own = text_of(text, item.span);
    match &item.kind {
        ItemKind::Fn(f) => {
            let code = signature(text_of(text, f.span)).replacen(") fn ", ")\nfn ", 1) + "\n";
            Some((f.name.text.to_string(), code))
        }
        ItemKind::Block(b) => {
            let mut code = signature(text_of(text, b.span)) + "\n";
            b.members.iter().for_each(|m| code.push_str(&entry(text, m.span)));
            b.methods.iter().for_each(|m| code.push_str(&method(text, m)));
            Some((b.name.text.to_string(), code))
        }
        ItemKind::Config(c) => {
            let mut code = signature(own) + "\n";
            c.fields.iter().for_each(|f| code.push_str(&entry(text, f.span)));
            Some((c.name.text.to_string(), code))
        }
        _ => None,
    }
}

fn section(name: &str, text: &str, bare: &mut Vec<String>) -> String {
    let mut sink = Sink::default();
    let module: Module = mdl_syntax::parse(FileId(0), text, &mut sink);
    assert!(sink.diagnostics.is_empty(), "std.{name} parses");
    let mut out = format!("\n## std.{name}\n\n{}\n", module.doc.trim());
    for item in &module.items {
        let Some((own, code)) = shown(text, item) else { continue };
        if item.doc.trim().is_empty() {
            bare.push(format!("std.{name}.{own}"));
        }
        out += &format!("\n### {own}\n\n```text\n{code}```\n\n{}\n", item.doc.trim());
    }
    out
}

#[test]
fn the_page_of_the_standard_library_is_up_to_date() {
    let mut bare = Vec::new();
    let mut page = HEAD.to_string();
    for (name, text) in embedded::STDLIB {
        page += &section(name, text, &mut bare);
    }
    assert!(bare.is_empty(), "without a doc comment: {}", bare.join(", "));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    if std::env::var_os("MDL_BLESS").is_some() {
        std::fs::write(&path, page).expect("the page is written");
    } else {
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == page, "{PAGE} is out of date: MDL_BLESS=1 rewrites it");
    }
}
