use mdl_syntax::*;
#[test]
fn show() {
    let text = "fn f(x: [B, T]) -> [] {\n    let y = g(x y)\n    let z = (x\n        - 3)\n    x < y < z\n}\n\nblock B() {\n    a: param[D as \"x\"\n    fn f() = 1\n}\n\nfn g() = x[a] ; 3\nmodel M(c: C) {\n    a param[D]\n    b: param[D] as 3\n    fn f() = 1 +\n fn g(x: ) = 1\n}\nfn h(model: size) = @\n";
    let mut sources = SourceMap::default();
    let file = sources.add("models/x.mdl", text);
    let mut sink = Sink::default();
    let m = parse(file, text, &mut sink);
    println!("{}", print_ast(&m));
    for d in &sink.diagnostics { println!("{}", render(d, &sources, false)); }
    println!("{}", fmt(include_str!("comments.mdl")).expect("x"));
}
