//! The folder of compiled kernels: what is there, what is not taken, and how large it becomes.

use mdl_kernels::Store;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mdl-store-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn code_is_read_under_its_own_key_alone() {
    let path = folder("keys");
    let store = Store::new(Some(path.clone()));
    assert_eq!(store.read("a"), None);
    store.write("a", b"first");
    store.write("b", b"");
    store.write("a", b"second");
    assert_eq!(store.read("a").as_deref(), Some(&b"second"[..]));
    assert_eq!(store.read("b").as_deref(), Some(&b""[..]));
    assert_eq!(store.read("ab"), None);
    fs::remove_dir_all(path).expect("it is ours");
}

#[test]
fn without_a_folder_nothing_is_kept() {
    let store = Store::new(None);
    store.write("a", b"first");
    assert_eq!(store.read("a"), None);
}

#[test]
fn a_folder_that_cannot_be_written_is_no_fault() {
    let path = folder("file");
    fs::write(&path, b"not a folder").expect("written");
    let store = Store::new(Some(path.clone()));
    store.write("a", b"first");
    assert_eq!(store.read("a"), None);
    fs::remove_file(path).expect("it is ours");
}

#[test]
#[cfg(unix)]
fn what_others_can_write_is_not_taken() {
    use std::os::unix::fs::PermissionsExt;
    let path = folder("others");
    let store = Store::new(Some(path.clone()));
    store.write("a", b"first");
    let entry = fs::read_dir(&path).expect("a folder").next().expect("one file").expect("readable");
    fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o666)).expect("it is ours");
    assert_eq!(store.read("a"), None);
    fs::remove_dir_all(path).expect("it is ours");
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let path = folder("bound");
    let store = Store::bounded(path.clone(), 3_000);
    let code = [7; 800];
    let long_ago = SystemTime::now() - Duration::from_secs(1_000);
    for key in ["a", "b", "c"] {
        store.write(key, &code);
    }
    for entry in fs::read_dir(&path).expect("a folder") {
        let file = fs::File::options().append(true).open(entry.expect("readable").path());
        file.expect("ours").set_modified(long_ago).expect("it is ours");
    }
    assert!(store.read("a").is_some() && store.read("c").is_some());
    store.write("d", &code);
    assert_eq!(store.read("b"), None);
    for key in ["a", "c", "d"] {
        assert!(store.read(key).is_some(), "{key} was used last and is gone");
    }
    fs::remove_dir_all(path).expect("it is ours");
}
