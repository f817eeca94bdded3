//! The commands in the documents: each line parses, what is shown is what is printed, and every
//! command has a page.
//!
//! A block marked `sh` holds commands that are parsed and not run, since they train or need files
//! that a reader brings. A block marked `console` holds commands behind `$` with what they print:
//! they run, in a folder for each document, and `MDL_BLESS=1` rewrites what they print. A block
//! marked `mdl,file=NAME` is a file of that folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MDLC: &str = env!("CARGO_BIN_EXE_mdlc");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Documents by their path from the root, with their text.
fn documents() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_string()];
    for folder in ["docs", "docs/commands"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("there are documents") {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    let read = |name: &String| std::fs::read_to_string(root().join(name)).expect("a text");
    names.iter().map(|name| (name.clone(), read(name))).collect()
}

/// A fenced block: what it is marked with, its lines, and the number of its first line.
struct Block<'t> {
    mark: &'t str,
    lines: Vec<&'t str>,
    first: usize,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (i, line) in text.lines().enumerate() {
        match (open, line.strip_prefix("```")) {
            (false, Some(mark)) => {
                found.push(Block { mark, lines: Vec::new(), first: i + 1 });
                open = true;
            }
            (true, Some(_)) => open = false,
            (true, None) => found.last_mut().expect("it is open").lines.push(line),
            (false, None) => {}
        }
    }
    found
}

/// Commands of a block, with lines that end in a backslash joined to the next.
fn commands(block: &Block<'_>) -> Vec<String> {
    let joined = block.lines.join("\n").replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|l| l.starts_with("mdlc ")).map(str::to_string).collect()
}

fn shell(command: &str, folder: &Path) -> Output {
    let tools = Path::new(MDLC).parent().expect("a folder").display().to_string();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    let mut sh = Command::new("sh");
    sh.args(["-c", command]).current_dir(folder).env("PATH", path);
    sh.output().expect("there is a shell")
}

/// A new folder for the commands of one document.
fn folder(document: &str) -> PathBuf {
    let name = format!("mdl-{}-{}", document.replace('/', "-"), std::process::id());
    let folder = std::env::temp_dir().join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for the commands");
    folder
}

/// With `--help` at the end a command says what it could do, after its arguments have been read.
#[test]
fn commands_in_documents_parse() {
    let mut wrong = String::new();
    let mut parsed = 0;
    for (name, text) in documents() {
        for block in blocks(&text).iter().filter(|b| b.mark == "sh") {
            for command in commands(block) {
                // What follows an operator of the shell is no argument.
                let words = command.split(['|', '>', '#', ';']).next().unwrap_or(&command);
                let output = shell(&format!("{words} --help"), &root());
                if !output.status.success() {
                    let said = String::from_utf8_lossy(&output.stderr);
                    wrong.push_str(&format!("{name}:{}: {command}\n{said}\n", block.first));
                }
                parsed += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(parsed > 10, "the documents have {parsed} commands");
}

/// The document with what its commands print now.
fn printed_now(name: &str, text: &str) -> String {
    let folder = folder(name);
    let mut lines: Vec<String> = Vec::new();
    let mut rest = text.lines();
    while let Some(line) = rest.next() {
        lines.push(line.to_string());
        let Some(mark) = line.strip_prefix("```").filter(|m| !m.is_empty()) else { continue };
        let block: Vec<&str> = rest.by_ref().take_while(|l| !l.starts_with("```")).collect();
        match mark.split_once("file=") {
            Some((_, file)) => {
                let whole = block.join("\n") + "\n";
                std::fs::write(folder.join(file), whole).expect("a file of the document");
                lines.extend(block.iter().map(|l| l.to_string()));
            }
            None if mark == "console" => {
                for command in block.iter().filter_map(|l| l.strip_prefix("$ ")) {
                    let output = shell(command, &folder);
                    let said = [output.stdout, output.stderr].concat();
                    lines.push(format!("$ {command}"));
                    lines.extend(String::from_utf8_lossy(&said).lines().map(str::to_string));
                }
            }
            None => lines.extend(block.iter().map(|l| l.to_string())),
        }
        lines.push("```".to_string());
    }
    std::fs::remove_dir_all(&folder).expect("made above");
    lines.join("\n") + "\n"
}

#[test]
fn what_documents_show_is_what_is_printed() {
    let bless = std::env::var_os("MDL_BLESS").is_some();
    for (name, text) in documents().iter().filter(|(_, text)| text.contains("\n```console\n")) {
        let now = printed_now(name, text);
        if bless {
            std::fs::write(root().join(name), now).expect("the document is written");
        } else {
            assert_eq!(*text, now, "{name} is out of date: MDL_BLESS=1 rewrites it");
        }
    }
}

#[test]
fn every_command_has_a_page() {
    let help = Command::new(MDLC).arg("--help").output().expect("it runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let list = help.split("Commands:\n").nth(1).expect("the help lists the commands");
    let names: Vec<&str> =
        list.lines().map_while(|l| l.split_whitespace().next()).filter(|n| *n != "help").collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let page = root().join("docs/commands").join(name).with_extension("md");
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        let title = format!("# mdlc {name}\n");
        assert!(text.starts_with(&title), "docs/commands/{name}.md begins with `{title}`");
    }
}
