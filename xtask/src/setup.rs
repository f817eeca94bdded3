//! `setup`: sees to it that the LLVM which the CPU runtime links can be found when it is built.
//!
//! The crate `tracel-llvm-bundler` downloads a prebuilt LLVM in its build script, unless its
//! directory already holds a sentinel file. Where the download is out of reach, setup makes that
//! directory itself, with an `llvm-config` that forwards to the distribution's LLVM.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{answer, cargo, exists, root};
use crate::system_llvm;

const BUNDLER: &str = "tracel-llvm-bundler";
const PATIENCE: Duration = Duration::from_secs(10);

/// Which LLVM to take when none is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// The bundler's own, if it can be downloaded.
    Download,
    /// The distribution's.
    System,
}

pub fn setup(prefer: Prefer) -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        println!("setup: nothing to do, the build downloads LLVM by itself");
        return Ok(());
    }
    system_llvm::install_compiler()?;
    let Some(version) = bundler_version()? else {
        println!("setup: nothing to do, no crate of Cargo.lock links LLVM");
        return Ok(());
    };
    let place = llvm_directory(&version)?;
    if place.join(system_llvm::SENTINEL).exists() {
        return look_after(&place);
    }
    if prefer == Prefer::Download {
        match download_works(&version) {
            Ok(host) => {
                println!("setup: LLVM will be downloaded from {host} by the first build");
                return Ok(());
            }
            Err(reason) => println!("setup: LLVM cannot be downloaded ({reason})"),
        }
    }
    system_llvm::install(&place)
}

/// An LLVM is there: keep it, unless it is our forwarder and what it forwards to is gone.
fn look_after(place: &Path) -> Result<(), String> {
    let Some(target) = system_llvm::forwards_to(place) else {
        println!("setup: LLVM is in place");
        return Ok(());
    };
    if system_llvm::is_usable(&target) {
        println!("setup: LLVM is in place, {}", target.display());
        return Ok(());
    }
    println!("setup: {} is gone or lacks libraries; installing again", target.display());
    system_llvm::install(place)
}

/// Where the bundler keeps its LLVM; it follows the XDG base directories.
fn llvm_directory(version: &str) -> Result<PathBuf, String> {
    let data = match std::env::var_os("XDG_DATA_HOME").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path,
        _ => {
            let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or(
                "HOME is not set, so there is no place to look for LLVM; set it and run again",
            )?;
            Path::new(&home).join(".local/share")
        }
    };
    Ok(data.join("tracel").join(format!("tracel-llvm-{version}")))
}

/// The bundler's version in Cargo.lock, which is also the version of its LLVM.
fn bundler_version() -> Result<Option<String>, String> {
    let path = root().join("Cargo.lock");
    let lock = fs::read_to_string(&path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let name = format!("name = \"{BUNDLER}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = "));
    Ok(version.map(|version| version.trim_matches('"').to_string()))
}

/// The host, if its download answers within ten seconds; else the reason in a few words.
fn download_works(version: &str) -> Result<String, String> {
    let url = checksum_url(version)?;
    let host = url.split('/').nth(2).unwrap_or(&url).to_string();
    if exists("curl") {
        let patience = PATIENCE.as_secs().to_string();
        let found = answer("curl", &["-fsSIL", "--max-time", &patience, &url]);
        return found.map(|_| host.clone()).ok_or(format!("{url} does not answer"));
    }
    // Without curl an open port is the best evidence there is.
    let mut addresses = (host.as_str(), 443)
        .to_socket_addrs()
        .map_err(|_| format!("the name {host} does not resolve"))?;
    let open = addresses.any(|address| TcpStream::connect_timeout(&address, PATIENCE).is_ok());
    if open { Ok(host) } else { Err(format!("{host} does not answer")) }
}

/// The small file that the bundler fetches before its archive; the address is in its source.
fn checksum_url(version: &str) -> Result<String, String> {
    let source = bundler_source()?.join("src/config.rs");
    let text = fs::read_to_string(&source)
        .map_err(|error| format!("{} cannot be read: {error}", source.display()))?;
    let base = text
        .split_once("ARTIFACT_BASE_URL")
        .and_then(|(_, rest)| rest.split('"').nth(1))
        .ok_or_else(|| format!("{} names no address", source.display()))?;
    let machine = if cfg!(target_arch = "aarch64") { "linux-AArch64" } else { "linux-x64" };
    Ok(format!("{base}/v{version}/{machine}.checksums.json"))
}

/// The unpacked source of the bundler; asking cargo also fetches it on a fresh machine.
fn bundler_source() -> Result<PathBuf, String> {
    let output = cargo()
        .args(["metadata", "--format-version", "1"])
        .output()
        .map_err(|error| format!("cargo did not start: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo could not list the dependencies: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let manifest = text
        .split("\"manifest_path\":\"")
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains(BUNDLER))
        .ok_or_else(|| format!("cargo knows no source of {BUNDLER}"))?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new(manifest)).to_path_buf())
}
