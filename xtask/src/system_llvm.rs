//! The distribution's LLVM in the place of the bundled one: packages, and a forwarding script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{answer, exists, run, run_or_stop};

/// The bundler takes a directory with this file in it for complete.
pub const SENTINEL: &str = ".tracel-llvm-installed";

/// LLVM 22 is what the bundler's release is built from; its C API is what the crate calls.
const LLVM_PACKAGE: &str = "llvm-22-dev";
const LLVM_CONFIG: &str = "/usr/lib/llvm-22/bin/llvm-config";

/// LLVM's static libraries and what they link in turn.
const PACKAGES: [&str; 6] =
    [LLVM_PACKAGE, "libpolly-22-dev", "libz3-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"];

/// The bundler strips `-l` from the answer to `--system-libs` and hands the rest to the linker,
/// which turns the path of libz3 into the library `libz3` that nobody has.
const FORWARDER: &str = r#"#!/bin/sh
# Written by `cargo xtask setup`: forwards to the distribution's LLVM.
llvm_config=@TARGET@
answer=$("$llvm_config" "$@") || exit $?
case " $* " in
*' --system-libs '*)
    printf '%s\n' "$answer" | sed -e 's#-llibz3#-lz3#g' -e 's#[^ ]*/libz3\.[a-z0-9.]*#-lz3#g' ;;
*)  printf '%s\n' "$answer" ;;
esac
"#;

/// A linker for C++ (LLVM is C++) and pkg-config, where missing.
pub fn install_compiler() -> Result<(), String> {
    let wanted = [("cc", "gcc"), ("c++", "g++"), ("pkg-config", "pkg-config")];
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !exists(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() { Ok(()) } else { apt_install(&missing) }
}

/// Installs what is missing and makes `place` look like a finished download.
pub fn install(place: &Path) -> Result<(), String> {
    let missing = missing_packages();
    if !missing.is_empty() {
        apt_install(&missing)?;
    }
    let target = Path::new(LLVM_CONFIG);
    if !is_whole(target) {
        return Err(format!(
            "{LLVM_CONFIG} does not list LLVM's static libraries although {LLVM_PACKAGE} is \
             installed; `apt-get install --reinstall {}` brings them back",
            PACKAGES.join(" ")
        ));
    }
    write_forwarder(place, target)
        .map_err(|error| format!("{} cannot be written: {error}", place.display()))?;
    println!("setup: the build will use {LLVM_CONFIG} through {}", place.display());
    Ok(())
}

/// The `llvm-config` that the one in `place` forwards to, if it is a script that does.
pub fn forwards_to(place: &Path) -> Option<PathBuf> {
    // The bundled llvm-config is a binary, so it does not read as text.
    let script = fs::read_to_string(place.join("bin/llvm-config")).ok()?;
    script
        .split([' ', '\n', '=', '"'])
        .find(|word| word.starts_with('/') && word.ends_with("/llvm-config"))
        .map(PathBuf::from)
}

/// Whether what this `llvm-config` names can be linked: its static libraries and, for the
/// distribution's, what they link in turn.
pub fn is_usable(llvm_config: &Path) -> bool {
    let ours = llvm_config == Path::new(LLVM_CONFIG);
    is_whole(llvm_config) && (!ours || missing_packages().is_empty())
}

fn is_whole(llvm_config: &Path) -> bool {
    answer(llvm_config, &["--link-static", "--libs"]).is_some()
}

fn write_forwarder(place: &Path, target: &Path) -> std::io::Result<()> {
    let bin = place.join("bin");
    fs::create_dir_all(&bin)?;
    let script = bin.join("llvm-config");
    let text = FORWARDER.replace("@TARGET@", &target.display().to_string());
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    // Last, because it says that the rest is there.
    fs::write(place.join(SENTINEL), "")
}

fn missing_packages() -> Vec<&'static str> {
    // Without dpkg the packages have other names, and the files themselves are the evidence.
    if !exists("dpkg-query") && is_whole(Path::new(LLVM_CONFIG)) {
        return Vec::new();
    }
    let is_installed = |package: &str| {
        answer("dpkg-query", &["-W", "-f", "${db:Status-Status}", package])
            .is_some_and(|status| status == "installed")
    };
    PACKAGES.into_iter().filter(|package| !is_installed(package)).collect()
}

pub fn apt_install(packages: &[&str]) -> Result<(), String> {
    let list = packages.join(" ");
    if !exists("apt-get") {
        return Err(format!(
            "this machine has no apt-get; install what Debian calls {list} with its own package \
             manager, so that {LLVM_CONFIG} exists, and run `cargo xtask setup` again"
        ));
    }
    // A stale package list is not fatal: the candidate may be known from before.
    let (updated, _) = run(apt()?.arg("update"))?;
    if packages.contains(&LLVM_PACKAGE) && !has_candidate(LLVM_PACKAGE) {
        return Err(no_candidate(updated));
    }
    run_or_stop(apt()?.args(["install", "-y", "--no-install-recommends"]).args(packages))
        .map(|_| ())
        .map_err(|error| format!("{error}. The packages that the build needs: {list}"))
}

/// `apt-get` as root: directly, or through sudo.
fn apt() -> Result<Command, String> {
    let is_root = answer("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    if !is_root && !exists("sudo") {
        return Err(format!(
            "packages have to be installed, and this is neither root nor is there sudo; as root \
             run: apt-get install {} g++ pkg-config",
            PACKAGES.join(" ")
        ));
    }
    let mut command = Command::new(if is_root { "env" } else { "sudo" });
    if !is_root {
        command.arg("env");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(command)
}

/// Whether apt could install the package from the lists that it has.
fn has_candidate(package: &str) -> bool {
    answer("apt-cache", &["policy", package]).is_some_and(|policy| {
        policy.lines().any(|line| {
            let candidate = line.trim().strip_prefix("Candidate:");
            candidate.is_some_and(|version| version.trim() != "(none)")
        })
    })
}

fn no_candidate(updated: bool) -> String {
    let lists = if updated {
        "the package lists were updated and do not have it"
    } else {
        "updating the package lists failed, see above"
    };
    format!(
        "LLVM can neither be downloaded by the build nor installed as {LLVM_PACKAGE}: {lists}.\n\
         Any one of these helps:\n  \
         - let this machine reach the address above, and run `cargo xtask setup` again;\n  \
         - on Debian 12, enable its security updates, which have {LLVM_PACKAGE};\n  \
         - elsewhere, add the LLVM project's own packages of version 22 for this distribution."
    )
}
