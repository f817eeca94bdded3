//! Published models come in whole, or not at all: weights that fit, weights that do not, files that
//! are damaged, and configurations that a model file does not follow.

mod model_files;

use mdl_check::config::Setting;
use mdl_check::entry::EntryOptions;
use mdl_driver::pipeline::{Purpose, finish, state_layout};
use mdl_ir::graph::{InputRole, Param};
use mdl_ir::tensor_type::{Axis, DType, Type};
use mdl_kernels::Device;
use mdl_train::against::{against, preset_against};
use mdl_train::import::{ModelTensors, load};
use mdl_train::machine::Machine;
use mdl_train::model::{Model, ModelError};
use mdl_train::packing::Evaluation;
use mdl_train::session::write_batch;
use mdl_train::weights::Weights;
use model_files::{
    Tensor, folder, llama, put_model, put_tensors, put_text, small_config, tensor, tiny_config,
    values,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Weights this small give almost equal logits, so that the loss is that of a guess; half a nat is
/// far more than they can move it, and far less than a transposed or misplaced tensor does.
const FROM_A_GUESS: f64 = 0.5;

/// Every value of every tensor arrives where it belongs, and the model computes with it.
#[test]
fn a_tied_bf16_model_comes_in_whole() {
    let dir = folder("import-small");
    let config = small_config();
    let tensors = llama(&config, Dtype::BF16);
    put_model(&dir, &config, &tensors);
    let mut model = Model::of_checkpoint(&dir).expect("a Llama");
    let sizes = vec![("B".to_string(), 2), ("T".to_string(), 24)];
    let options = EntryOptions { sizes, documents: true, auxiliary: false };
    let trace = model.compile("loss", &options, &Purpose::Forward).expect("compiles");
    let device = Arc::new(Device::cpu(None));
    let state = state_layout(trace.last(), &Purpose::Forward);
    let executable = finish(trace.last(), &state, device.units()).expect("plans");
    let machine = Machine::new(device, executable);
    let weights = Weights::open(&dir).expect("written above");
    load(&machine, &weights, &trace.last().params).expect("the same model");
    let mut compared = 0;
    for (p, param) in trace.last().params.iter().enumerate() {
        let slot = machine.executable.input(&InputRole::Param(p)).expect("the loss uses all");
        let all = machine.read(slot);
        for (name, range) in param.stored_tensors() {
            let wanted = tensors.iter().find(|t| t.name == name).expect("a published name");
            assert_eq!(all[range.start as usize..range.end as usize], values(wanted), "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, tensors.len());
    let ids = (0..49).map(|i| (i * i * 7 + i) % 491).collect();
    write_batch(&machine, &Evaluation::new(vec![ids], 24).batch(0, 2));
    machine.run();
    let loss = f64::from(machine.read_value("loss").expect("a loss")[0]);
    assert!((loss - 491f64.ln()).abs() < FROM_A_GUESS, "{loss}");
}

/// A checkpoint has each expert of each layer as a tensor of its own.
#[test]
fn experts_arrive_in_their_places() {
    let dir = folder("import-experts");
    let names = |name: &str| {
        let layers = (0..2).flat_map(|l| (0..3).map(move |e| (l, e)));
        layers.map(|(l, e)| format!("layers.{l}.experts.{e}.{name}")).collect::<Vec<_>>()
    };
    let file = dir.join("model.safetensors");
    let shape = [4, 5];
    let tensors: Vec<Tensor> =
        names("w1").iter().zip(0..).map(|(n, i)| tensor(n, Dtype::BF16, &shape, i)).collect();
    put_tensors(&file, &tensors);
    let axes = [("layers", 2), ("experts", 3), ("ffn", 4), ("hidden", 5)];
    let param = Param {
        name: "w1".into(),
        stored: "layers.{}.experts.{}.w1".into(),
        also_stored: Vec::new(),
        ty: Type::new(DType::F32, axes.map(|(name, size)| Axis::new(name, size)).to_vec()),
        repeats: Some(2),
        parts: Some(3),
        init: None,
    };
    let weights = Weights::open(&file).expect("written above");
    let mut stacked = Vec::new();
    ModelTensors::find(&weights, &[param]).expect("all six").each(|place, values| {
        assert_eq!((place.param, place.range.start), (0, stacked.len() as u64));
        stacked.extend_from_slice(values);
    });
    assert_eq!(stacked, tensors.iter().flat_map(values).collect::<Vec<f32>>());
}

/// What a directory gives when everything but the computing is done.
fn import(dir: &Path) -> Result<usize, ModelError> {
    let mut model = Model::of_checkpoint(dir)?;
    let params = model.params()?;
    let weights = Weights::open(dir)?;
    Ok(ModelTensors::find(&weights, &params)?.places.len())
}

/// A file of the directory is changed byte by byte.
fn change(dir: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the file was written");
    edit(&mut bytes);
    std::fs::write(path, bytes).expect("the folder is writable");
}

/// The header is changed, the data stay.
fn change_header(dir: &Path, edit: impl FnOnce(&mut Value)) {
    change(dir, |bytes| {
        let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
        edit(&mut header);
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        *bytes = [&length, header.as_bytes(), &bytes[8 + n..]].concat();
    });
}

/// The tensors are changed before they are written.
fn change_tensors(dir: &Path, edit: impl FnOnce(&mut Vec<Tensor>)) {
    let mut tensors = llama(&tiny_config(), Dtype::F32);
    edit(&mut tensors);
    put_tensors(&dir.join("model.safetensors"), &tensors);
}

fn find<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|t| t.name.contains(name)).expect("a tensor of the model")
}

/// Two shards with an index that has these entries changed.
fn shards(dir: &Path, edit: impl FnOnce(&mut Value, &mut [Vec<Tensor>; 2])) {
    std::fs::remove_file(dir.join("model.safetensors")).expect("written before");
    let mut first = llama(&tiny_config(), Dtype::F32);
    let second = first.split_off(5);
    let mut shards = [first, second];
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut index = json!({"metadata": {}, "weight_map": {}});
    for (name, tensors) in names.iter().zip(&shards) {
        tensors.iter().for_each(|t| index["weight_map"][&t.name] = json!(name));
    }
    edit(&mut index, &mut shards);
    for (name, tensors) in names.iter().zip(&shards) {
        put_tensors(&dir.join(name), tensors);
    }
    put_text(&dir.join("model.safetensors.index.json"), &index.to_string());
}

/// Name, what is done to a whole directory, the code, and what the message names.
type Case = (&'static str, fn(&Path), &'static str, &'static str);

const EMBED: &str = "model.embed_tokens.weight";

const DAMAGES: &[Case] = &[
    ("empty", |d| change(d, |b| b.clear()), "E0922", "model.safetensors"),
    ("three bytes", |d| change(d, |b| b.truncate(3)), "E0922", "model.safetensors"),
    ("cut in the header", |d| change(d, |b| b.truncate(100)), "E0922", "damaged"),
    ("cut in the data", |d| change(d, |b| b.truncate(b.len() - 5)), "E0922", "damaged"),
    ("longer", |d| change(d, |b| b.push(0)), "E0922", "damaged"),
    ("huge header", |d| change(d, |b| b[..8].fill(0xff)), "E0922", "damaged"),
    ("header longer than the file", |d| change(d, |b| b[2] = 1), "E0922", "damaged"),
    ("no JSON", |d| change(d, |b| b[8] = b'?'), "E0922", "damaged"),
    ("nested", |d| change(d, |b| b[8..800].fill(b'[')), "E0922", "damaged"),
    ("header is a list", |d| change_header(d, |h| *h = json!([1])), "E0922", "damaged"),
    (
        "wrong length",
        |d| change_header(d, |h| h[EMBED]["shape"] = json!([7, 8])),
        "E0922",
        "damaged",
    ),
    (
        "overflowing shape",
        |d| change_header(d, |h| h[EMBED]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        "E0922",
        "damaged",
    ),
    (
        "overlap",
        |d| {
            change_header(d, |h| {
                h["lm_head.weight"]["data_offsets"] = h[EMBED]["data_offsets"].clone();
            });
        },
        "E0922",
        "damaged",
    ),
    (
        "gap",
        |d| {
            change_header(d, |h| {
                h.as_object_mut().map(|h| h.remove(EMBED));
            });
        },
        "E0922",
        "damaged",
    ),
    (
        "offsets backwards",
        |d| change_header(d, |h| h[EMBED]["data_offsets"] = json!([192, 0])),
        "E0922",
        "damaged",
    ),
    (
        "unknown type",
        |d| change_header(d, |h| h[EMBED]["dtype"] = json!("F31")),
        "E0922",
        "damaged",
    ),
    (
        "a directory",
        |d| {
            change(d, |_| {});
            std::fs::remove_file(d.join("model.safetensors")).expect("written before");
            std::fs::create_dir(d.join("model.safetensors")).expect("writable");
        },
        "E0921",
        "model.safetensors",
    ),
];

const UNFIT: &[Case] = &[
    (
        "integers",
        |d| {
            change_tensors(d, |t| {
                let it = find(t, "up_proj");
                (it.dtype, it.bytes) = (Dtype::I64, vec![0; it.bytes.len() * 2]);
            });
        },
        "E0923",
        "up_proj.weight` is I64",
    ),
    (
        "NaN",
        |d| {
            change_tensors(d, |t| {
                find(t, "v_proj").bytes[4..8].copy_from_slice(&[0, 0, 0xc0, 0x7f])
            })
        },
        "E0926",
        "`model.layers.0.self_attn.v_proj.weight` has a NaN",
    ),
    (
        "infinite",
        |d| change_tensors(d, |t| find(t, "norm").bytes[0..4].copy_from_slice(&[0, 0, 0x80, 0xff])),
        "E0926",
        "`model.layers.0.input_layernorm.weight`",
    ),
    (
        "missing",
        |d| change_tensors(d, |t| t.retain(|t| !t.name.contains("_proj"))),
        "E0923",
        "`model.layers.0.self_attn.q_proj.weight` is missing",
    ),
    (
        "extra",
        |d| change_tensors(d, |t| t.push(tensor("model.layers.1.x", Dtype::F32, &[2, 3], 0))),
        "E0923",
        "`model.layers.1.x` with shape [2, 3] is not in the model",
    ),
    (
        "transposed",
        |d| change_tensors(d, |t| find(t, "up_proj").shape.reverse()),
        "E0923",
        "up_proj.weight` has shape [8, 12]; the model has f32[ffn=12, hidden=8]",
    ),
    (
        "a shard outside",
        |d| shards(d, |index, _| index["weight_map"][EMBED] = json!("../model.safetensors")),
        "E0922",
        "`../model.safetensors` is not a plain file name",
    ),
    (
        "an absolute shard",
        |d| shards(d, |index, _| index["weight_map"][EMBED] = json!("/etc/passwd")),
        "E0922",
        "`/etc/passwd` is not a plain file name",
    ),
    (
        "a missing shard",
        |d| shards(d, |index, _| index["weight_map"][EMBED] = json!("model-3.safetensors")),
        "E0922",
        "model-3.safetensors",
    ),
    (
        "shuffled shards",
        |d| {
            shards(d, |index, _| {
                index["weight_map"][EMBED] = json!("model-00002-of-00002.safetensors");
            });
        },
        "E0923",
        "`model.embed_tokens.weight` is not in",
    ),
    (
        "a tensor in two shards",
        |d| {
            shards(d, |_, shards| {
                let twice = shards[0][0].clone();
                shards[1].push(twice);
            });
        },
        "E0922",
        "`model.embed_tokens.weight` is in two files",
    ),
    ("an index without a map", |d| shards(d, |index, _| *index = json!({})), "E0922", "weight_map"),
    ("an index of lists", |d| shards(d, |index, _| *index = json!([[]])), "E0922", "index.json"),
];

#[test]
fn damaged_and_foreign_weights_are_errors_with_names() {
    for (what, damage, code, named) in DAMAGES.iter().chain(UNFIT) {
        let dir = folder("import-damaged");
        put_model(&dir, &tiny_config(), &llama(&tiny_config(), Dtype::F32));
        assert_eq!(import(&dir).expect("whole"), 12, "{what}");
        damage(&dir);
        let error = import(&dir).map(|_| what).expect_err("refused").to_string();
        assert!(error.starts_with(&format!("error[{code}]: ")), "{what}: {error}");
        assert!(error.contains(named), "{what}: {error}");
    }
}

#[test]
fn shards_and_harmless_leftovers_come_in() {
    let dir = folder("import-shards");
    put_model(&dir, &tiny_config(), &llama(&tiny_config(), Dtype::F32));
    shards(&dir, |_, _| {});
    assert_eq!(import(&dir).expect("two shards"), 12);
    let leftover = "model.layers.0.self_attn.rotary_emb.inv_freq";
    change_tensors(&dir, |t| t.push(tensor(leftover, Dtype::F32, &[2], 0)));
    assert_eq!(import(&dir).expect("a leftover"), 12);
}

#[test]
fn many_differences_are_listed_and_counted() {
    let dir = folder("import-many");
    put_model(&dir, &small_config(), &llama(&tiny_config(), Dtype::F32));
    let error = import(&dir).expect_err("another model").to_string();
    assert_eq!(error.lines().count(), 10, "{error}");
    let found = against("llama", &dir).expect("both can be read");
    // Nine tensors of each of the three layers are missing, the others have another shape, and
    // the head is one more name of the embedding.
    assert_eq!(found.tensors, Some(12));
    assert!(error.ends_with(&format!("and {} more", found.differences.len() - 8)), "{error}");
    assert_eq!(found.differences.len(), 3 * 9 + 11 + 1, "{:?}", found.differences);
}

#[test]
fn a_tied_weight_has_either_name_or_both_with_equal_values() {
    let mut config = tiny_config();
    config["tie_word_embeddings"] = json!(true);
    let head = |t: &mut Vec<Tensor>| t.pop().expect("the head is last");
    type Edit = fn(&mut Vec<Tensor>, Tensor);
    let cases: [(&str, Edit, bool); 4] = [
        ("embedding", |_, _| {}, true),
        (
            "head",
            |t, head| {
                t.remove(0);
                t.push(head);
            },
            true,
        ),
        (
            "both",
            |t, head| {
                let bytes = t[0].bytes.clone();
                t.push(Tensor { bytes, ..head });
            },
            true,
        ),
        ("both, unlike", |t, head| t.push(head), false),
    ];
    for (what, edit, fits) in cases {
        let dir = folder("import-tied");
        let mut tensors = llama(&tiny_config(), Dtype::F32);
        let head = head(&mut tensors);
        edit(&mut tensors, head);
        put_model(&dir, &config, &tensors);
        match import(&dir) {
            Ok(n) => assert!(fits && n == 11, "{what}"),
            Err(e) => assert!(!fits && e.to_string().contains("one weight of the model"), "{e}"),
        }
    }
}

/// The rotary embedding that a `config.json` asks for.
fn rope(edit: &Value) -> Result<Vec<Setting>, String> {
    let mut config = tiny_config();
    for (key, value) in edit.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let dir = folder("import-rope");
    put_text(&dir.join("config.json"), &config.to_string());
    let model = Model::of_checkpoint(&dir).map_err(|e| e.to_string())?;
    let Some(Setting::Config(rope)) = model.config.field("rope") else {
        return Err("a Llama has a rotary embedding".into());
    };
    Ok(["base", "scaling", "factor"]
        .map(|field| rope.field(field).expect("a field").clone())
        .to_vec())
}

#[test]
fn every_spelling_of_the_rotary_embedding_is_read() {
    let llama3 = |key: &str| {
        json!({key: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64})
    };
    let mut parameters = llama3("rope_type");
    parameters["rope_theta"] = json!(5e5);
    let plain = (10_000.0, "default", 1.0);
    let scaled = (5e5, "llama3", 8.0);
    let table = [
        (json!({"rope_scaling": null}), plain),
        (json!({"rope_theta": null, "rope_parameters": null}), plain),
        (json!({"rope_scaling": {"rope_type": "default"}}), plain),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}), plain),
        (json!({"rope_theta": 500000, "rope_scaling": llama3("type")}), scaled),
        (json!({"rope_theta": 5e5, "rope_scaling": llama3("rope_type")}), scaled),
        (json!({"rope_theta": null, "rope_parameters": parameters}), scaled),
        (json!({"rope_theta": 5e5, "rope_parameters": parameters}), scaled),
    ];
    for (edit, (base, scaling, factor)) in table {
        let wanted =
            [Setting::Real(base), Setting::Text(scaling.into()), Setting::Real(factor)].to_vec();
        assert_eq!(rope(&edit), Ok(wanted), "{edit}");
    }
}

/// What changes the mathematics and is not modelled is no silent matter.
#[test]
fn what_the_model_file_does_not_model_is_refused() {
    let table = [
        (json!({"hidden_act": "gelu"}), "E0404", "hidden_act = \"gelu\""),
        (json!({"attention_bias": true}), "E0404", "attention_bias = true"),
        (json!({"mlp_bias": true}), "E0404", "mlp_bias = true"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "E0404", "\"linear\""),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "E0404", "\"yarn\""),
        (json!({"rope_parameters": {"rope_type": "dynamic"}}), "E0404", "\"dynamic\""),
        (json!({"rope_scaling": {"factor": 2.0}}), "E0404", "factor = 2"),
        (json!({"rope_scaling": "linear"}), "E0406", "rope_scaling"),
        (json!({"partial_rotary_factor": 0.5}), "E0404", "partial_rotary_factor = 0.5"),
        (json!({"rope_parameters": {"rope_theta": 7.0}}), "E0404", "rope_theta = 7.0"),
    ];
    for (edit, code, named) in table {
        let error = rope(&edit).expect_err("not modelled");
        assert!(error.starts_with(&format!("error[{code}]")), "{edit}: {error}");
        assert!(error.contains(named), "{edit}: {error}");
    }
}

#[test]
fn the_model_is_found_by_its_architecture_or_its_type() {
    let table = [
        (json!({"model_type": "llama"}), Ok("LlamaForCausalLM")),
        (json!({"architectures": [], "model_type": "llama"}), Ok("LlamaForCausalLM")),
        (json!({"architectures": ["LlamaForCausalLM"]}), Ok("LlamaForCausalLM")),
        (json!({"architectures": ["LlamaModel"], "model_type": "llama"}), Err("`LlamaModel`")),
        (json!({"model_type": "bert"}), Err("model type `bert`")),
        (json!({}), Err("no architecture")),
        (json!([]), Err("is no JSON object")),
    ];
    for (keys, wanted) in table {
        let dir = folder("import-type");
        let mut config = tiny_config();
        let object = config.as_object_mut().expect("an object");
        ["architectures", "model_type"].iter().for_each(|key| drop(object.remove(*key)));
        match keys.as_object() {
            Some(keys) => object.extend(keys.clone()),
            None => config = keys.clone(),
        }
        put_text(&dir.join("config.json"), &config.to_string());
        match (Model::of_checkpoint(&dir), wanted) {
            (Ok(mut model), Ok(name)) => assert_eq!(model.front.model().expect("one").name, name),
            (Err(error), Err(named)) => {
                let error = error.to_string();
                assert!(error.starts_with("error[E0921]") && error.contains(named), "{error}");
                assert!(!named.contains('`') || error.contains("LlamaForCausalLM"), "{error}");
            }
            (found, _) => panic!("{keys}: {found:?}"),
        }
    }
}

#[test]
fn a_comparison_names_what_is_not_read_and_what_a_preset_binds_otherwise() {
    let dir = folder("import-against");
    let mut config = tiny_config();
    config["logit_scale"] = json!(0.5);
    config["rope_scaling"] = json!({"rope_type": "default", "attention_factor": 2});
    config["some_dropout"] = json!(0.0);
    put_text(&dir.join("config.json"), &config.to_string());
    for path in [dir.clone(), dir.join("config.json")] {
        let found = against("llama", &path).expect("a configuration");
        assert_eq!((found.parameters, found.tensors), (600, None));
        let unread = ["logit_scale = 0.5", "rope_scaling.attention_factor = 2"];
        assert_eq!(found.unread, unread);
    }
    put_model(&dir, &config, &llama(&config, Dtype::BF16));
    let found = against("llama", &dir).expect("a checkpoint");
    assert_eq!((found.tensors, found.differences), (Some(12), Vec::new()));
    let fields = preset_against("llama", "tiny", &dir).expect("both bind");
    let names: Vec<&str> = fields.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["ffn", "head", "hidden", "kv_heads", "layers", "vocab"]);
    assert_eq!(fields[0], ("ffn".into(), "176".into(), "12".into()));
}
