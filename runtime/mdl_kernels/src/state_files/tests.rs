//! Files that hold a state: what is written is read, and damage is found.

use super::*;

/// Sections that are no multiples of a page, nor of each other.
const SECTION: u64 = 2 * PAGE + 512;
const OTHER: u64 = 4 * PAGE + 256;
const SECTIONS: [(&str, u64); 2] = [("a", SECTION), ("b", OTHER)];

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mdl-state-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    dir
}

fn files(dir: &Path) -> StateFiles {
    StateFiles::create(dir, &SECTIONS, |_| None).expect("a folder of its own")
}

fn bytes(n: u64) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn parts_come_back_as_they_were_written_and_the_rest_is_zeros() {
    let dir = folder("parts");
    let mut state = files(&dir);
    let mut model = vec![0; state.bytes() as usize];
    // Within a page, over its border, a whole section, the end of the other one.
    for (at, n) in [(256, 512), (PAGE - 256, 768), (SECTION, OTHER), (SECTION - 256, 256)] {
        state.write(at, &bytes(n)).expect("written");
        model[at as usize..(at + n) as usize].copy_from_slice(&bytes(n));
    }
    for (at, n) in
        [(0, SECTION), (SECTION, OTHER), (256, 256), (PAGE, PAGE), (SECTION + 4 * PAGE, 256)]
    {
        let mut found = vec![1; n as usize];
        state.read(at, &mut found).expect("whole");
        assert_eq!(found, model[at as usize..(at + n) as usize], "from {at}");
    }
    drop(state);
    assert_eq!(fs::read_dir(&dir).expect("a folder").count(), 0, "scratch is removed");
}

#[test]
fn a_flipped_bit_is_found_by_reads_and_by_writes_beside_it() {
    let dir = folder("damaged");
    let mut state = files(&dir);
    state.write(0, &bytes(SECTION)).expect("written");
    let path = dir.join("mdl-state.a");
    let mut found = fs::read(&path).expect("a file");
    found[PAGE as usize + 9] ^= 4;
    fs::write(&path, found).expect("writable");
    let mut page = vec![0; 256];
    state.read(0, &mut page).expect("another page is whole");
    for fault in [
        state.read(PAGE + 1024, &mut page).expect_err("damaged"),
        state.write(PAGE + 1024, &page).expect_err("damaged"),
    ] {
        assert_eq!(fault.code(), "E0972");
        let text = fault.to_string();
        assert!(text.contains("mdl-state.a") && text.contains("byte 4096"), "{text}");
        assert!(text.contains("--resume_from_checkpoint"), "{text}");
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_its_bytes() {
    let dir = folder("small");
    let bytes = SECTION + 3 * 4 + OTHER + 5 * 4;
    let refused = StateFiles::create(&dir, &SECTIONS, |_| Some(bytes - 1)).expect_err("too small");
    assert_eq!(refused.code(), "E0973");
    let text = refused.to_string();
    assert!(text.contains(&format!("takes {bytes} bytes")), "{text}");
    assert!(text.contains(&format!("has {} free", bytes - 1)), "{text}");
    StateFiles::create(&dir, &SECTIONS, |_| Some(bytes)).expect("exactly enough");
}

#[test]
fn what_a_crash_left_is_cleaned_and_what_another_run_has_is_refused() {
    let dir = folder("crash");
    let mut state = files(&dir);
    state.write(0, &bytes(256)).expect("written");
    let refused = StateFiles::create(&dir, &SECTIONS, |_| None).expect_err("in use");
    assert_eq!(refused.code(), "E0971");
    fs::write(dir.join("notes.txt"), "mine").expect("writable");
    // A crash removes nothing, and the system drops its locks.
    let crashed = std::mem::ManuallyDrop::new(state);
    crashed._marker.unlock().expect("locked");
    let mut state = files(&dir);
    let mut found = vec![1; 256];
    state.read(0, &mut found).expect("whole");
    assert_eq!(found, [0; 256], "nothing of the old state is left");
    drop(state);
    assert!(dir.join("notes.txt").exists(), "other files stay");
}
