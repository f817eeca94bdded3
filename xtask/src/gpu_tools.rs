//! What the tests of GPU kernels need on a machine without a GPU: a Vulkan in software, and
//! NVIDIA's assembler from its package for Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{exists, root, run_or_stop};
use crate::system_llvm::apt_install;

/// Mesa's driver that computes on the CPU.
const VULKAN: &str = "mesa-vulkan-drivers";
const DRIVERS: &str = "/usr/share/vulkan/icd.d";
const ASSEMBLER: &str = "nvidia-cuda-nvcc";

pub fn install() -> Result<(), String> {
    install_vulkan()?;
    install_assembler()
}

pub fn install_vulkan() -> Result<(), String> {
    let drivers = fs::read_dir(DRIVERS).into_iter().flatten().flatten();
    let is_software = |name: &str| name.starts_with("lvp");
    if drivers.into_iter().any(|file| is_software(&file.file_name().to_string_lossy())) {
        println!("setup: a Vulkan in software is in place");
        return Ok(());
    }
    apt_install(&[VULKAN])
}

/// Puts the path of `ptxas` into target/tools/ptxas, where the tests look.
pub fn install_assembler() -> Result<(), String> {
    let tools = root().join("target/tools");
    let place = tools.join("ptxas");
    let known = fs::read_to_string(&place).map(|path| PathBuf::from(path.trim()));
    if known.is_ok_and(|path| path.exists()) {
        println!("setup: ptxas is in place");
        return Ok(());
    }
    if !exists("python3") {
        apt_install(&["python3", "python3-venv", "python3-pip"])?;
    }
    let packages = tools.join("python");
    run_or_stop(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
            .arg(&packages)
            .arg(ASSEMBLER),
    )?;
    let found = find(&packages).ok_or(format!("{ASSEMBLER} has no ptxas"))?;
    fs::write(&place, found.display().to_string())
        .map_err(|error| format!("{} cannot be written: {error}", place.display()))
}

/// The program below a folder.
fn find(folder: &Path) -> Option<PathBuf> {
    let entries: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.ends_with("ptxas")).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path)))
}
