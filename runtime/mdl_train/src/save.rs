//! Writes checkpoints so that a stop at any moment leaves the last good one as it was.
//!
//! A step is written under another name, each file flushed to the disk and the manifest last,
//! then renamed, then `latest` is replaced. One run at a time writes to a directory: what else
//! has the name of an unfinished step there is taken for a leftover and removed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sha2::{Digest, Sha256};

use crate::checkpoint::{
    CheckpointError, FORMAT, FileRecord, Manifest, hex, paths, read_step, steps,
};
use crate::floats::narrow;
use crate::packing::Cursor;
use crate::tensor_file::{Tensor, write_tensors};

// Values are written as they lie in memory, and safetensors are little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// A weight and its optimizer state, all three row-major of the same shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The Hugging Face name.
    pub name: String,
    pub shape: Vec<usize>,
    pub value: Vec<f32>,
    /// Running mean of the gradient.
    pub m: Vec<f32>,
    /// Running mean of the squared gradient.
    pub v: Vec<f32>,
}

/// Everything that a checkpoint holds, owned, so that it can be written by another thread.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Optimizer steps done.
    pub step: u64,
    /// The next sample to train on.
    pub cursor: Cursor,
    /// Micro-batches of a step.
    pub gradient_accumulation: u64,
    /// Hash of the compiled graph.
    pub graph: String,
    pub parameters: Vec<Parameter>,
    /// The numbers of weights and moments, which hold them exactly.
    pub stored: Dtype,
    /// The model's `config.json`, with `bos_token_id` and `eos_token_id` where it has them.
    pub config_json: String,
    pub tokenizer_json: Option<Vec<u8>>,
    /// Text of the model file.
    pub model_mdl: String,
    /// What it imports: path beside the model file, and text.
    pub modules: Vec<(String, String)>,
    /// The run's settings.
    pub run_json: String,
}

/// Writes `dir/step-N` and points `latest` at it; with `keep`, removes all but the newest so
/// many steps afterwards. On an error nothing that was there before has changed.
pub fn save(
    dir: &Path,
    snapshot: &Snapshot,
    keep: Option<usize>,
) -> Result<PathBuf, CheckpointError> {
    let failed = |source| CheckpointError::Write { path: dir.display().to_string(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let name = format!("step-{:08}", snapshot.step);
    let temporary = dir.join(format!("{name}.tmp-{}", std::process::id()));
    remove_leftovers(dir);
    let written = write_files(&temporary, snapshot).and_then(|()| commit(dir, &name, &temporary));
    if let Err(source) = written {
        // What was written would only take the room that is perhaps missing.
        let _ = fs::remove_dir_all(&temporary);
        return Err(failed(source));
    }
    if let Some(keep) = keep {
        retain(dir, keep.max(1));
    }
    Ok(dir.join(name))
}

fn write_files(dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    fs::create_dir(dir)?;
    let parameters = &snapshot.parameters;
    let values: Vec<Values> =
        parameters.iter().map(|it| (it.name.clone(), it, &*it.value)).collect();
    let moments: Vec<Values> = parameters
        .iter()
        .flat_map(|it| [("m", &it.m), ("v", &it.v)].map(|(part, data)| (it, part, data)))
        .map(|(it, part, data)| (format!("{part}.{}", it.name), it, &**data))
        .collect();
    let mut files = BTreeMap::new();
    let mut put = |name: &str, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>| {
        let path = dir.join(name);
        let folder = path.parent().unwrap_or(dir);
        fs::create_dir_all(folder)?;
        files.insert(name.to_owned(), write_file(&path, write)?);
        sync_directory(folder)
    };
    put("model.safetensors", &mut |out| write_values(out, &values, snapshot.stored))?;
    put("optimizer.safetensors", &mut |out| write_values(out, &moments, snapshot.stored))?;
    put("config.json", &mut |out| out.write_all(snapshot.config_json.as_bytes()))?;
    if let Some(json) = &snapshot.tokenizer_json {
        put("tokenizer.json", &mut |out| out.write_all(json))?;
    }
    put("model.mdl", &mut |out| out.write_all(snapshot.model_mdl.as_bytes()))?;
    for (path, text) in &snapshot.modules {
        put(path, &mut |out| out.write_all(text.as_bytes()))?;
    }
    put("run.json", &mut |out| out.write_all(snapshot.run_json.as_bytes()))?;
    let mut manifest = Manifest {
        format: FORMAT,
        step: snapshot.step,
        cursor: snapshot.cursor,
        gradient_accumulation: snapshot.gradient_accumulation,
        graph: snapshot.graph.clone(),
        tensors: parameters.iter().map(|it| (it.name.clone(), it.shape.clone())).collect(),
        files,
        sha256: String::new(),
    };
    manifest.sha256 = manifest.own_sha256();
    let json = serde_json::to_vec_pretty(&manifest)?;
    write_file(&dir.join("manifest.json"), &mut |out| out.write_all(&json))?;
    sync_directory(dir)
}

/// The name of a tensor, the parameter that gives its shape, and its values.
type Values<'a> = (String, &'a Parameter, &'a [f32]);

fn write_values(out: &mut dyn Write, values: &[Values], dtype: Dtype) -> io::Result<()> {
    let tensors: Vec<Tensor> = values
        .iter()
        .map(|(name, it, _)| Tensor { name: name.clone(), dtype, shape: &it.shape })
        .collect();
    write_tensors(out, &tensors, |i| match dtype {
        Dtype::F32 => Ok(Cow::Borrowed(bytemuck::cast_slice(values[i].2))),
        _ => match narrow(dtype, values[i].2) {
            Some(bytes) => Ok(Cow::Owned(bytes)),
            None => Err(io::Error::other(format!("`{}` is not finite", tensors[i].name))),
        },
    })
}

struct Hashed {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let n = self.file.write(part)?;
        self.hash.update(&part[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file and waits until it is on the disk.
pub(crate) fn write_file(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> io::Result<FileRecord> {
    let hashed = Hashed { file: File::create_new(path)?, hash: Sha256::new(), bytes: 0 };
    let mut out = BufWriter::with_capacity(1 << 20, hashed);
    write(&mut out)?;
    let Hashed { file, hash, bytes } = out.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    Ok(FileRecord { bytes, sha256: hex(&hash.finalize()) })
}

/// Gives a finished directory its name. A damaged step of the same number makes way.
fn commit(dir: &Path, name: &str, temporary: &Path) -> io::Result<()> {
    let path = dir.join(name);
    if path.exists() {
        set_aside(&path)?;
    }
    fs::rename(temporary, &path)?;
    sync_directory(dir)?;
    let latest = dir.join(format!("latest.tmp-{}", std::process::id()));
    let _ = fs::remove_file(&latest);
    write_file(&latest, &mut |out| writeln!(out, "{name}"))?;
    fs::rename(&latest, dir.join("latest"))?;
    sync_directory(dir)?;
    remove_leftovers(dir);
    Ok(())
}

pub(crate) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Takes a step's name away, so that no reader sees it while it is being removed.
fn set_aside(path: &Path) -> io::Result<()> {
    fs::rename(path, path.with_extension(format!("old.tmp-{}", std::process::id())))
}

/// Removes what saves that were cut off left. What cannot be removed only takes room.
fn remove_leftovers(dir: &Path) {
    for path in paths(dir) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("step-") && name.contains(".tmp-") {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Removes all but the newest `keep` whole steps. A damaged one does not count as kept.
fn retain(dir: &Path, keep: usize) {
    let whole = steps(dir).into_iter().filter(|(_, path)| read_step(path).is_ok());
    for (_, path) in whole.skip(keep) {
        let _ = set_aside(&path);
    }
    remove_leftovers(dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{model_directory, newest, open};

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mdl_save_{name}_{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn snapshot(step: u64) -> Snapshot {
        let parameter = |name: &str, shape: &[usize]| {
            let n = shape.iter().product::<usize>();
            let values = |from: f32| (0..n).map(|i| from + i as f32 * 0.1).collect::<Vec<_>>();
            Parameter {
                name: name.to_owned(),
                shape: shape.to_vec(),
                value: values(step as f32),
                m: values(0.5),
                v: values(0.25),
            }
        };
        Snapshot {
            step,
            cursor: Cursor { sample: step * 8 },
            gradient_accumulation: 1,
            graph: "abc".to_owned(),
            parameters: vec![parameter("norm.weight", &[3]), parameter("a.weight", &[2, 3])],
            stored: Dtype::F32,
            config_json: "{\"vocab_size\":7}".to_owned(),
            tokenizer_json: None,
            model_mdl: "model M {}".to_owned(),
            modules: vec![("block.mdl".to_owned(), "block B() {}".to_owned())],
            run_json: "{}".to_owned(),
        }
    }

    fn saved(name: &str, steps: &[u64]) -> PathBuf {
        let dir = directory(name);
        for step in steps {
            save(&dir, &snapshot(*step), None).expect("the directory is writable");
        }
        dir
    }

    fn newest_step(dir: &Path) -> Option<u64> {
        newest(dir).expect("a step is whole").map(|found| found.manifest.step)
    }

    fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).expect("the file was saved");
        edit(&mut bytes);
        fs::write(path, bytes).expect("the directory is writable");
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let dir = saved("round", &[9, 50]);
        let found = open(&dir).expect("both steps are whole");
        assert_eq!(found.path, dir.join("step-00000050"));
        assert_eq!((found.manifest.step, found.manifest.cursor.sample), (50, 400));
        assert_eq!(fs::read_to_string(dir.join("latest")).ok().as_deref(), Some("step-00000050\n"));
        let (weights, moments) = (found.weights(), found.optimizer());
        let (weights, moments) = (weights.expect("whole"), moments.expect("whole"));
        for it in snapshot(50).parameters {
            assert_eq!(weights.shape(&it.name).expect("saved"), it.shape);
            assert_eq!(weights.read_f32(&it.name).expect("saved"), it.value);
            assert_eq!(moments.read_f32(&format!("m.{}", it.name)).expect("saved"), it.m);
            assert_eq!(moments.read_f32(&format!("v.{}", it.name)).expect("saved"), it.v);
        }
        assert_eq!(found.text("model.mdl").ok().as_deref(), Some("model M {}"));
        let (a, norm): (&[usize], &[usize]) = (&[2, 3], &[3]);
        assert!(found.check_model([("a.weight", a), ("norm.weight", norm)]).is_ok());
        for other in [vec![("a.weight", a)], vec![("a.weight", norm)], vec![("b", a)]] {
            assert_eq!(found.check_model(other).expect_err("other").code(), "E0925");
        }
        assert_eq!(model_directory(&dir).ok(), Some(found.path.clone()));
        assert_eq!(open(&found.path).map(|it| it.manifest).ok(), Some(found.manifest));
    }

    #[test]
    fn a_save_that_was_cut_off_is_not_seen() {
        let dir = saved("cut", &[10]);
        // As after a kill before the rename: complete but for its name, and in the middle.
        fs::create_dir(dir.join("step-00000020.tmp-77")).expect("writable");
        for entry in paths(&dir.join("step-00000010")) {
            let to = dir.join("step-00000020.tmp-77").join(entry.file_name().expect("a file"));
            fs::copy(&entry, to).expect("writable");
        }
        fs::create_dir(dir.join("step-00000030.tmp-78")).expect("writable");
        fs::write(dir.join("step-00000030.tmp-78/model.safetensors"), b"12").expect("writable");
        assert_eq!(newest_step(&dir), Some(10));
        // As after a kill between the rename and `latest`.
        save(&dir, &snapshot(40), None).expect("writable");
        fs::write(dir.join("latest"), "step-00000010\n").expect("writable");
        assert_eq!(newest_step(&dir), Some(40));
        assert!(!dir.join("step-00000030.tmp-78").exists(), "leftovers go with the next save");
        assert_eq!(
            newest(&directory("none")).expect("nothing is no error").map(|it| it.path),
            None
        );
        assert_eq!(open(&directory("none")).expect_err("nothing").code(), "E0921");
    }

    type Edit<'a> = &'a dyn Fn(&mut Vec<u8>);

    #[test]
    fn any_damage_falls_back_to_the_older_step() {
        let dir = saved("damage", &[10, 20]);
        let step = dir.join("step-00000020");
        let whole: Vec<_> =
            paths(&step).into_iter().map(|path| (fs::read(&path).expect("saved"), path)).collect();
        assert_eq!(whole.len(), 7);
        for (bytes, path) in &whole {
            let last = bytes.len() - 1;
            let cases: [(&str, Edit); 4] = [
                ("truncated", &|it| it.truncate(last / 2)),
                ("emptied", &|it| it.clear()),
                ("longer", &|it| it.push(b' ')),
                ("flipped", &|it| it[last / 2] ^= 1),
            ];
            for (how, edit) in cases {
                change(path, edit);
                let found = open(&dir).expect("step 10 is whole");
                // A manifest with a space behind it is still the same manifest.
                let is_same = how == "longer" && path.ends_with("manifest.json");
                let expected = if is_same { (20, 0) } else { (10, 1) };
                assert_eq!((found.manifest.step, found.notes.len()), expected, "{how} {path:?}");
                assert!(found.notes.iter().all(|note| note.contains("step-00000020")));
                if !is_same {
                    assert_eq!(open(&step).expect_err("named itself").code(), "E0922");
                }
                change(path, |it| it.clone_from(bytes));
            }
            fs::remove_file(path).expect("writable");
            assert_eq!(newest_step(&dir), Some(10));
            fs::write(path, bytes).expect("writable");
        }
        assert_eq!(open(&dir).map(|it| it.manifest.step).ok(), Some(20));
    }

    #[test]
    fn a_step_is_replaced_and_old_ones_go_on_request() {
        let dir = saved("keep", &[1, 2, 3]);
        change(&dir.join("step-00000003/model.safetensors"), |it| it.truncate(9));
        assert_eq!(newest_step(&dir), Some(2));
        save(&dir, &snapshot(3), Some(2)).expect("writable");
        assert_eq!(newest_step(&dir), Some(3));
        let left: Vec<u64> = steps(&dir).into_iter().map(|(step, _)| step).collect();
        assert_eq!(left, [3, 2]);
        assert_eq!(paths(&dir).len(), 3, "two steps and `latest`");
    }

    #[test]
    fn a_failed_save_leaves_nothing_behind() {
        let dir = saved("fail", &[1]);
        let mut wrong = snapshot(2);
        wrong.parameters[0].shape = vec![4];
        assert_eq!(save(&dir, &wrong, Some(1)).expect_err("wrong shape").code(), "E0924");
        assert_eq!(paths(&dir).len(), 2);
        assert_eq!(newest_step(&dir), Some(1));
        let on_a_file = dir.join("latest");
        assert_eq!(save(&on_a_file, &snapshot(2), None).expect_err("a file").code(), "E0924");
    }
}
