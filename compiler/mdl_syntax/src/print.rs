//! Tokens and trees as text, for `mdlc dump tokens` and `mdlc dump ast`.
//!
//! Expressions are printed with every operator in front and in parentheses, so that precedence
//! and what a bracket became can be read off.

use std::fmt::Write;

use crate::ast::*;
use crate::token::Tokens;

/// One line per token: kind, bytes, and the text.
pub fn print_tokens(tokens: &Tokens, text: &str) -> String {
    let mut out = String::new();
    for token in &tokens.tokens {
        let mark = if token.first_on_line { '^' } else { ' ' };
        let shown = token.text(text).escape_debug();
        let kind = format!("{:?}", token.kind);
        let _ = writeln!(out, "{mark} {kind:<12} {}..{}  {shown}", token.start, token.end);
    }
    out
}

/// An indented tree, one line per item, entry and statement.
pub fn print_ast(module: &Module) -> String {
    let mut out = Tree { out: String::new(), depth: 0 };
    out.doc(&module.doc);
    for item in &module.items {
        out.doc(&item.doc);
        out.item(item);
    }
    out.out
}

struct Tree {
    out: String,
    depth: usize,
}

impl Tree {
    fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.out, "{:width$}{}", "", text.as_ref(), width = self.depth * 2);
    }

    fn inside(&mut self, f: impl FnOnce(&mut Self)) {
        self.depth += 1;
        f(self);
        self.depth -= 1;
    }

    fn doc(&mut self, doc: &str) {
        for line in doc.lines() {
            self.line(format!("doc {line:?}"));
        }
    }

    fn item(&mut self, item: &Item) {
        let range = format!("@{}..{}", item.span.start, item.span.end);
        match &item.kind {
            ItemKind::Use(import) => {
                let (path, names) = (join(&import.path, "."), join(&import.names, " "));
                self.line(format!("use {path} ({names}) {range}"));
            }
            ItemKind::Config(config) => {
                self.line(format!("config {} {range}", config.name.text));
                self.inside(|tree| tree.config(config));
            }
            ItemKind::Fn(function) => self.function(function),
            ItemKind::Block(block) => self.block("block", block),
            ItemKind::Model(block) => self.block("model", block),
            ItemKind::Preset(preset) => {
                let (name, config) = (&preset.name.text, &preset.config.text);
                self.line(format!("preset {name}: {config} {range}"));
                self.inside(|tree| {
                    for (name, value) in &preset.bindings {
                        tree.line(format!("{} = {}", name.text, expr(value)));
                    }
                    tree.asserts(&preset.asserts);
                });
            }
            ItemKind::Error => self.line(format!("error {range}")),
        }
    }

    fn asserts(&mut self, asserts: &[Expr]) {
        for assert in asserts {
            self.line(format!("assert {}", expr(assert)));
        }
    }

    fn config(&mut self, config: &Config) {
        for field in &config.fields {
            self.doc(&field.doc);
            let ty = match &field.ty {
                FieldType::Size => "size",
                FieldType::Real => "real",
                FieldType::Bool => "bool",
                FieldType::Text => "text",
                FieldType::Config(name) => &name.text,
            };
            let default = default(&field.default);
            self.line(format!("field {}: {ty}{default}", field.name.text));
        }
        self.asserts(&config.asserts);
    }

    fn function(&mut self, function: &Fn) {
        let range = format!("@{}..{}", function.span.start, function.span.end);
        let kernel = function.kernel.as_ref().map_or(String::new(), |k| format!(" @{}", k.text));
        let name = head(&function.name, &function.axes);
        self.line(format!("fn {name}{kernel} {range}"));
        self.inside(|tree| {
            tree.args(&function.args);
            for result in &function.result {
                tree.line(format!("result {}", tensor(result)));
            }
            for statement in &function.body.lets {
                tree.line(let_text(statement));
            }
            tree.line(format!("= {}", expr(&function.body.result)));
        });
    }

    fn args(&mut self, args: &[Arg]) {
        for arg in args {
            let ty = match &arg.ty {
                ArgType::Tensor(ty) => tensor(ty),
                ArgType::Size => "size".to_string(),
                ArgType::Real => "real".to_string(),
                ArgType::Bool => "bool".to_string(),
                ArgType::Function(axes) => format!("fn[{}]", join(axes, ", ")),
                ArgType::Config(name) => name.text.to_string(),
            };
            self.line(format!("arg {}: {ty}{}", arg.name.text, default(&arg.default)));
        }
    }

    fn block(&mut self, word: &str, block: &Block) {
        let range = format!("@{}..{}", block.span.start, block.span.end);
        self.line(format!("{word} {} {range}", head(&block.name, &block.axes)));
        self.inside(|tree| {
            tree.args(&block.args);
            for member in &block.members {
                tree.doc(&member.doc);
                tree.line(member_text(member));
            }
            for method in &block.methods {
                tree.function(method);
            }
        });
    }
}

fn member_text(member: &Member) -> String {
    let mut text = format!("member {}: ", member.name.text);
    match &member.kind {
        MemberKind::Param { ty, init, tied } => {
            text += &format!("param{}", tensor(ty));
            if let Some(init) = init {
                text += &format!(" init {}", expr(init));
            }
            if let Some((name, condition)) = tied {
                text += &format!(" tied {}", name.text);
                if let Some(condition) = condition {
                    text += &format!(" if {}", expr(condition));
                }
            }
        }
        MemberKind::Instance { block, axes, args, count } => {
            text += &format!("{}({})", head(block, axes), call_args(args));
            if let Some(count) = count {
                text += &format!(" times {}", count.text);
            }
        }
    }
    if let Some((stored, _)) = &member.stored {
        text += &format!(" as {stored:?}");
    }
    text
}

fn join(names: &[Name], between: &str) -> String {
    names.iter().map(|name| &*name.text).collect::<Vec<_>>().join(between)
}

fn head(name: &Name, axes: &[Name]) -> String {
    if axes.is_empty() {
        return name.text.to_string();
    }
    format!("{}[{}]", name.text, join(axes, ", "))
}

fn default(value: &Option<Expr>) -> String {
    value.as_ref().map_or(String::new(), |value| format!(" = {}", expr(value)))
}

fn tensor(ty: &TypeExpr) -> String {
    let dtype = ty.dtype.as_ref().map_or("", |name| &*name.text);
    let open = ty.open.then(|| "..".to_string());
    let axes = ty.axes.iter().map(|axis| match &axis.size {
        Some(size) => format!("{} = {}", axis.name.text, expr(size)),
        None => axis.name.text.to_string(),
    });
    format!("{dtype}[{}]", open.into_iter().chain(axes).collect::<Vec<_>>().join(", "))
}

fn let_text(statement: &Let) -> String {
    match statement {
        Let::Value { names, value } => format!("let {} = {}", join(names, ", "), expr(value)),
        Let::Axis { name, size } => format!("axis {} = {}", name.text, expr(size)),
    }
}

fn body(body: &Body) -> String {
    let lets = body.lets.iter().map(|statement| let_text(statement) + "; ").collect::<String>();
    format!("{{{lets}{}}}", expr(&body.result))
}

fn call_args(args: &[CallArg]) -> String {
    let args = args.iter().map(|arg| match &arg.name {
        Some(name) => format!("{}: {}", name.text, expr(&arg.value)),
        None => expr(&arg.value),
    });
    args.collect::<Vec<_>>().join(", ")
}

fn change(change: &AxisChange) -> String {
    let old = if change.old.is_empty() { String::new() } else { " = ".to_string() };
    let start = change.start.as_ref().map_or(String::new(), |s| format!(" from {}", expr(s)));
    format!("{}{old}{}{start}", join(&change.new, " * "), join(&change.old, " * "))
}

fn expr(value: &Expr) -> String {
    match &value.kind {
        ExprKind::Number(text) => text.clone(),
        ExprKind::Text(text) => format!("{text:?}"),
        ExprKind::Bool(value) => value.to_string(),
        ExprKind::Infinity => "inf".to_string(),
        ExprKind::Name(name) => name.text.to_string(),
        ExprKind::Member(owner, name) => format!("{}.{}", expr(owner), name.text),
        ExprKind::Call { function, axes, args } => {
            let axes = axes.iter().map(|axis| match &axis.old {
                Some(old) => format!("{} = {}", axis.name.text, old.text),
                None => axis.name.text.to_string(),
            });
            let axes = axes.collect::<Vec<_>>().join(", ");
            let axes = if axes.is_empty() { axes } else { format!("[{axes}]") };
            format!("{}{axes}({})", expr(function), call_args(args))
        }
        ExprKind::Reaxis(owner, changes) => {
            let changes = changes.iter().map(change).collect::<Vec<_>>().join(", ");
            format!("(reaxis {} [{changes}])", expr(owner))
        }
        ExprKind::Unary(op, operand) => {
            let op = if *op == UnaryOp::Neg { "-" } else { "not" };
            format!("({op} {})", expr(operand))
        }
        ExprKind::Binary(op, left, right) => {
            format!("({} {} {})", op_text(*op), expr(left), expr(right))
        }
        ExprKind::Else(left, right) => format!("(else {} {})", expr(left), expr(right)),
        ExprKind::If(condition, then, other) => {
            format!("(if {} {} {})", expr(condition), body(then), body(other))
        }
        ExprKind::Tuple(parts) => {
            format!("(tuple {})", parts.iter().map(expr).collect::<Vec<_>>().join(" "))
        }
        ExprKind::Error => "<error>".to_string(),
    }
}

fn op_text(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::And => "and",
        BinaryOp::Or => "or",
    }
}
