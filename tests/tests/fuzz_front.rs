//! A deterministic little fuzzer of lexer, parser and checker: no change of a model file makes
//! them panic, hang or run out of stack. `MDL_FUZZ_SECONDS` and `MDL_FUZZ_SEED` make it longer.

mod front_end;

use front_end::{check, folder};
use mdl_syntax::token::Token;
use mdl_syntax::{FileId, Sink, codes, lex};
use std::time::{Duration, Instant};

/// xorshift64*, so that every run sees the same cases.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "7",
    "2147483647",
    "2147483648",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "1e-999",
    "0.5",
    "inf",
    "-1",
    "(1 / 0)",
    "(0 / 0)",
    "65536",
];

fn tokens(text: &str) -> Vec<Token> {
    lex(FileId(0), text, &mut Sink::default()).tokens
}

/// One change of a text at some token.
fn mutate(text: &str, random: &mut Random) -> String {
    let tokens = tokens(text);
    if tokens.is_empty() {
        return text.to_string();
    }
    let (one, two) = (random.pick(&tokens), random.pick(&tokens));
    let range = one.start as usize..one.end as usize;
    let (own, other) = (one.text(text), two.text(text));
    let with = match random.below(9) {
        0 => String::new(),
        1 => format!("{own} {own}"),
        2 | 3 => other.to_string(),
        4 => format!("{other} {own}"),
        5 => random.pick(NUMBERS).to_string(),
        6 => format!("({own})"),
        // Numbers and names are changed more often than the grammar is.
        _ => {
            let same = tokens.iter().filter(|t| t.kind == one.kind);
            let same: Vec<&str> = same.map(|t| t.text(text)).collect();
            match own.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
                true => random.pick(NUMBERS).to_string(),
                false => random.pick(&same).to_string(),
            }
        }
    };
    format!("{}{with}{}", &text[..range.start], &text[range.end..])
}

/// What must hold for any text.
fn run(text: &str) -> bool {
    let started = Instant::now();
    let front = check("fuzz.mdl", text, &[]);
    for d in &front.sink.diagnostics {
        assert!(codes::find(d.code).is_some(), "{} has no row", d.code);
    }
    let few = front.sink.diagnostics.iter().take(3);
    few.for_each(|d| assert!(!mdl_syntax::render(d, &front.sources, false).is_empty()));
    if front.sink.diagnostics.is_empty() {
        let mut sink = mdl_syntax::Sink::default();
        mdl_check::check::expand(&front.program, &mut sink);
        assert!(sink.diagnostics.is_empty(), "only without a memo: {:?}", sink.diagnostics);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?} for\n{text}");
    !front.failed()
}

fn corpus() -> Vec<String> {
    ["models", "stdlib"].iter().flat_map(|f| folder(f)).map(|(_, text)| text).collect()
}

#[test]
fn changed_models_do_no_harm() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = number("MDL_FUZZ_SECONDS");
    let mut random = Random(number("MDL_FUZZ_SEED").unwrap_or(1).max(1));
    let files = corpus();
    let started = Instant::now();
    let (mut cases, mut clean) = (0, 0);
    while seconds.map_or(cases < 2500, |s| started.elapsed().as_secs() < s) {
        let mut text = random.pick(&files);
        for _ in 0..1 + random.below(4) {
            text = mutate(&text, &mut random);
        }
        // A failure shows the text that made it.
        let result = std::panic::catch_unwind(|| run(&text));
        clean += usize::from(result.unwrap_or_else(|_| panic!("this text fails:\n{text}")));
        cases += 1;
    }
    println!("{cases} cases, {clean} clean, {:?}", started.elapsed());
    assert!(clean * 50 > cases, "only {clean} of {cases} changes are clean");
}

/// Texts that ask for much with little.
// tidy: table
fn bombs() -> Vec<(&'static str, String)> {
    let model = |body: &str, items: &str| {
        format!(
            "config C {{\n    v: size = 8\n}}\n{items}\nmodel M(c: C) {{\n    {body}\n\n    \
             fn logits(tokens: ids[B, T]) -> [B, T, v] = where(tokens >= 0, w, 0)\n\n    \
             fn loss(tokens: ids[B, T], targets: ids[B, T]) -> f32[] = go(total(w))\n}}\n\n\
             preset p: C {{}}\n"
        )
    };
    let doubling = |n: usize, first: &str, step: &dyn Fn(usize) -> String| {
        let rest: String = (1..=n).map(step).collect();
        format!("{first}\n{rest}")
    };
    let w = "w: param[v] as \"w\" init 0";
    let calls = doubling(40, "fn f0(x: []) -> [] = exp(x)", &|i| {
        format!("fn f{i}(x: []) -> [] = f{0}(f{0}(x))\n", i - 1)
    });
    let blocks = doubling(40, "block B0(c: C) {\n    w: param[v] init 0\n}", &|i| {
        format!("block B{i}(c: C) {{\n    a: B{0}(c)\n    b: B{0}(c)\n}}\n", i - 1)
    });
    let configs = doubling(40, "config D0 {\n    a: size = 1\n}", &|i| {
        format!("config D{i} {{\n    a: D{0}\n    b: D{0}\n}}\n", i - 1)
    });
    let sizes: String =
        (1..60).map(|i| format!("    let s{i} = s{0} * s{0} + s{0}\n", i - 1)).collect();
    let axes: String = (1..60).map(|i| format!("    axis a{i} = a{0} * a{0}\n", i - 1)).collect();
    let deep = |f: &str| format!("fn f0(x: []) -> [] = {}x{}\n", f.repeat(60), ")".repeat(60));
    let deep: String = (1..60).fold(deep("exp("), |all, i| {
        let open = format!("f{}(", i - 1).repeat(1) + &"exp(".repeat(60);
        all + &format!("fn f{i}(x: []) -> [] = {open}x{}\n", ")".repeat(61))
    });
    let go = |n: usize| format!("\nfn go(x: []) -> [] = f{n}(x)\n");
    vec![
        ("calls", model(w, &(calls + &go(40)))),
        (
            "blocks",
            model("w: param[v] init 0\n    b: B40(c)", &(blocks + "\nfn go(x: []) -> [] = x")),
        ),
        ("configs", configs),
        ("config in itself", "config A {\n    a: A\n}\n".into()),
        ("configs in each other", "config A {\n    b: B\n}\n\nconfig B {\n    a: A\n}\n".into()),
        ("block in itself", "block A() {\n    a: A()\n}\n".into()),
        ("fn in itself", "fn f(x: []) -> [] = f(x) + f(x)\n".into()),
        ("fns in each other", "fn f(x: []) -> [] = g(x)\n\nfn g(x: []) -> [] = f(x)\n".into()),
        (
            "sizes",
            format!(
                "fn f[s0](x: [s0]) -> [] {{\n    let s0 = size[s0]() + 1\n{sizes}    \
                 total(x) * s59\n}}\n"
            ),
        ),
        ("axes", format!("fn f[a0](x: [a0]) -> [] {{\n{axes}    total(x)\n}}\n")),
        ("nested calls", deep + &go(59)),
        (
            "documents as initial values",
            "block A[D]() {\n    w: param[D] init document[D]()\n}\n".into(),
        ),
        ("a kernel of ours", "@kernel(attention)\nfn f[T](x: [T]) -> [T] = x\n".into()),
    ]
}

#[test]
fn small_texts_that_ask_for_much_are_refused() {
    for (name, text) in bombs() {
        let started = Instant::now();
        let clean = run(&text);
        println!("{name}: {:?}", started.elapsed());
        assert!(!clean, "{name} is accepted:\n{text}");
        let nested =
            text.replace("-> [] = ", "-> [] = ((((((((").chars().take(4000).collect::<String>();
        run(&nested);
    }
}

/// Items that call each other in pairs, as many as are looked at in portions.
fn many_items(count: usize, changed: impl Fn(usize) -> Option<&'static str>) -> String {
    let items = (0..count).map(|i| match changed(i) {
        Some(text) => format!("{text}\n\n"),
        None if i % 2 == 0 => format!("fn f{i}[T](x: [.., T]) -> [..] = sum[T](x * {i})\n\n"),
        None => format!("fn f{i}[S](x: [A, S]) -> [A] = f{0}[S](x)\n\n", i - 1),
    });
    items.collect()
}

#[test]
fn large_modules_are_parsed_and_checked_in_portions_without_a_difference() {
    const COUNT: usize = 1000;
    let clean = check("many.mdl", &many_items(COUNT, |_| None), &[]);
    assert!(clean.sink.diagnostics.is_empty(), "{:?}", clean.sink.diagnostics);
    assert_eq!(clean.program.root_items().count(), COUNT);
    let mistakes = [
        ("E0303", "fn wrong[T](x: [.., T]) -> [.., T] = sum[T](x)"),
        ("E0201", "fn wrong(x: []) -> [] = y"),
        ("E0202", "fn f0(x: []) -> [] = x"),
        ("E0101", "fn wrong(x: []) -> [] = = x"),
        ("E0209", "fn wrong[T](x: []) -> [] = x"),
    ];
    for (code, text) in mistakes {
        for at in [1, 130, 517, COUNT - 1] {
            // `f0` has a caller, which takes another function then.
            let changed = |i| (i == at).then_some(text);
            let found = check("many.mdl", &many_items(COUNT, changed), &[]).sink.diagnostics;
            let codes: Vec<&str> = found.iter().map(|d| d.code).collect();
            assert!(codes.contains(&code), "{code} as item {at}: {codes:?}");
        }
    }
    // `many_y` is wrong where nothing but `many_x`, looked at alone, says the contrary.
    let text = many_items(COUNT, |i| match i {
        0 => Some("fn r(v: []) -> [] = many_x(v, false)"),
        900 => Some("fn many_x(v: [], deep: bool) -> [] = if deep { many_y(v, false) } else { v }"),
        901 => Some("fn many_y(v: [], flag: bool) -> [] = if flag { v + \"text\" } else { v }"),
        1 => Some("fn s(v: []) -> [] = v"),
        _ => None,
    });
    let found = check("many.mdl", &text, &[]).sink.diagnostics;
    assert!(found.iter().any(|d| d.code == "E0405"), "{found:?}");
    // Reports are in the order of the text: nine of ten are defined again.
    let changed = |i| (i % 100 == 50).then_some("fn again(x: []) -> [] = x");
    let found = check("many.mdl", &many_items(COUNT, changed), &[]).sink.diagnostics;
    let places: Vec<u32> = found.iter().map(|d| d.labels[0].span.start).collect();
    assert!(places.len() == 9 && places.is_sorted(), "{places:?}");
}

/// A hundred warnings are enough, and leave room for what is wrong.
#[test]
fn warnings_hide_no_error() {
    let idle: String = (0..150).map(|i| format!("    let unused{i} = x\n")).collect();
    let text = format!("fn f(x: []) -> [] {{\n{idle}    x\n}}\n\nfn g(x: [A]) -> [B] = x\n");
    let found = check("idle.mdl", &text, &[]).sink.diagnostics;
    let count = |code| found.iter().filter(|d| d.code == code).count();
    assert_eq!((count("E0209"), count("E0303")), (100, 1));
}

/// Texts that are right, of which something was once said.
#[test]
fn what_is_right_is_not_refused() {
    let texts = [
        // The numbers of axes are made up here, so where a slice ends is not known.
        "fn tail[H, D](x: [.., H]) -> [.., D] = x[D = H from 200]",
        // What is made up for a mask is not what uses the function that takes it.
        "use std.attention.causal\n\
         fn inverted[T, S](m: fn[T, S]) -> bool[T, S] = not m[T, S]()\n\
         fn acausal[T, S]() -> bool[T, S] = inverted[T, S](causal)",
        "config C {\n    a: bool = true\n    b: bool = false\n    assert a != b\n}\n\
         fn f(c: C) -> [] = if c.a != c.b { 1.0 } else { 2.0 }",
    ];
    for text in texts {
        let found = check("right.mdl", text, &[]).sink.diagnostics;
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}
