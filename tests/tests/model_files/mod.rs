//! Published models in miniature, written as other tools write them.

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A tensor to be written.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A folder of its own for a test, empty.
pub fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mdl-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("the temporary folder is writable");
    dir
}

/// The shape of a published model with 135 million parameters (30 layers, hidden 576, 9 heads over
/// 3, one matrix for both ends, vocabulary 49152), scaled down.
pub fn small_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 72, "num_hidden_layers": 4, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 192, "vocab_size": 491,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "tie_word_embeddings": true, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
        "attention_bias": false, "bos_token_id": 0, "eos_token_id": 0, "use_cache": true,
        "transformers_version": "4.42.3"
    })
}

/// One layer with two heads over one, two matrices for the two ends.
pub fn tiny_config() -> Value {
    let mut config = small_config();
    let sizes = [
        ("hidden_size", 8),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("intermediate_size", 12),
        ("vocab_size", 6),
    ];
    sizes.iter().for_each(|(key, size)| config[*key] = json!(size));
    config["tie_word_embeddings"] = json!(false);
    config
}

/// Small numbers that differ from tensor to tensor, as bf16 has them.
fn noise(i: usize, salt: usize) -> f32 {
    let x = (i * 2_654_435 + salt * 40_503) % 1000;
    let x = (x as f32 / 1000.0 - 0.5) * 0.1;
    f32::from_bits(x.to_bits() & 0xffff_0000)
}

/// The weights of a Llama of these sizes, under the names that published ones have.
pub fn llama(config: &Value, dtype: Dtype) -> Vec<Tensor> {
    let size = |key: &str| config[key].as_u64().expect("a size") as usize;
    let (hidden, ffn, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let head = hidden / size("num_attention_heads");
    let kv = size("num_key_value_heads") * head;
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for i in 0..size("num_hidden_layers") {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
        ];
        let named = |(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape);
        shapes.extend(parts.map(named));
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    if config["tie_word_embeddings"] == json!(false) {
        shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    let tensors = shapes.into_iter().enumerate();
    tensors.map(|(i, (name, shape))| tensor(&name, dtype, &shape, i)).collect()
}

/// A tensor of small numbers, around one for the gain of a norm.
pub fn tensor(name: &str, dtype: Dtype, shape: &[usize], salt: usize) -> Tensor {
    let center = if name.contains("norm") { 1.0 } else { 0.0 };
    let n = shape.iter().product::<usize>();
    let values = (0..n).map(|i| center + noise(i, salt));
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|x| x.to_le_bytes()[2..].to_vec()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        other => panic!("tests write no {other:?}"),
    };
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// Writes a safetensors file.
pub fn put_tensors(path: &Path, tensors: &[Tensor]) {
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let views = tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes);
        (t.name.clone(), view.expect("as long as its shape says"))
    });
    serialize_to_file(views, Some(format), path).expect("the folder is writable");
}

/// Writes a model's directory with one weight file.
pub fn put_model(dir: &Path, config: &Value, tensors: &[Tensor]) {
    put_text(&dir.join("config.json"), &config.to_string());
    put_tensors(&dir.join("model.safetensors"), tensors);
}

pub fn put_text(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the folder is writable");
}

/// The values of a tensor.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    mdl_train::floats::widen(tensor.dtype, &tensor.bytes, &mut out);
    out
}
