//! Files as they should be, and as they should not.

use super::*;

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mdl_weights_{name}_{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("the temporary directory is writable");
    path
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn put(path: PathBuf, bytes: &[u8]) {
    fs::write(path, bytes).expect("the temporary directory is writable");
}

#[test]
fn narrow_types_are_widened() {
    let dir = directory("widen");
    let header = r#"{"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
        "h":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
        "i":{"dtype":"I8","shape":[1],"data_offsets":[16,17]}}"#;
    let halves: [u16; 8] = [0xbfc0, 0x7f80, 0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x0400];
    let mut data: Vec<u8> = halves.iter().flat_map(|it| it.to_le_bytes()).collect();
    data.push(1);
    put(dir.join("model.safetensors"), &safetensors(header, &data));
    let weights = Weights::open(&dir).expect("the file is whole");
    assert_eq!(weights.names().collect::<Vec<_>>(), ["b", "h", "i"]);
    assert_eq!(weights.shape("h").ok(), Some([2, 3].as_slice()));
    assert_eq!(weights.read_f32("b").ok(), Some(vec![-1.5, f32::INFINITY]));
    let small = 2f32.powi(-24);
    let h = vec![1.0, -2.0, small, 65504.0, f32::NEG_INFINITY, 2f32.powi(-14)];
    assert_eq!(weights.read_f32("h").ok(), Some(h));
    assert_eq!(weights.read_f32("i").expect_err("integers").code(), "E0923");
    assert_eq!(weights.read_f32("none").expect_err("missing").code(), "E0923");
}

#[test]
fn headers_that_lie_are_errors() {
    let dir = directory("lies");
    let path = dir.join("model.safetensors");
    let one = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let files = [
        safetensors(&one("[2]", "[0,8]"), &[0; 4]),
        safetensors(&one("[3]", "[0,8]"), &[0; 8]),
        safetensors(&one("[2]", "[8,0]"), &[0; 8]),
        safetensors(&one("[4294967296,4294967296,4]", "[0,0]"), &[]),
        safetensors(&one("[2]", "[0,18446744073709551615]"), &[0; 8]),
        safetensors(two, &[0; 12]),
        safetensors(&"[".repeat(10_000), &[]),
        u64::MAX.to_le_bytes().to_vec(),
        vec![],
        vec![1, 2, 3],
    ];
    for (i, bytes) in files.iter().enumerate() {
        put(path.clone(), bytes);
        let error = Weights::open(&dir).expect_err("the header lies");
        assert_eq!(error.code(), "E0922", "file {i}: {error}");
    }
    assert_eq!(Weights::open(&dir.join("none")).expect_err("nothing").code(), "E0921");
}

#[test]
fn shards_are_found_through_the_index() {
    let dir = directory("shards");
    for (file, name, value) in [("x.safetensors", "a", 1f32), ("y.safetensors", "b", 2.0)] {
        let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        put(dir.join(file), &safetensors(&header, &value.to_le_bytes()));
    }
    let index = dir.join("model.safetensors.index.json");
    put(index.clone(), br#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#);
    let weights = Weights::open(&dir).expect("both shards are there");
    assert_eq!(weights.read_f32("b").ok(), Some(vec![2.0]));
    put(index.clone(), br#"{"weight_map":{"a":"y.safetensors"}}"#);
    assert_eq!(Weights::open(&dir).expect_err("wrong shard").code(), "E0923");
    put(index, br#"{"weight_map":{"a":"../x.safetensors"}}"#);
    assert_eq!(Weights::open(&dir).expect_err("leads out").code(), "E0922");
}
