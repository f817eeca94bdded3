//! The loss of a pretrained model against that of an independent implementation, where the model is
//! at hand.

use mdl_kernels::Device;
use mdl_train::dataset::{self, Document};
use mdl_train::evaluation::{Evaluator, Extent, Report, evaluate};
use mdl_train::model::Model;
use mdl_train::session;
use mdl_train::tokenizer::Tokenizer;
use mdl_train::weights::Weights;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Relative error of a mean of f32 losses after five layers in f32; the reference is in f64.
const F32_LOSS: f64 = 1e-5;

/// The folder of test assets, which a checkout may lack.
fn assets() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets");
    if !path.is_dir() {
        println!("SKIPPED: {} is not there", path.display());
    }
    path.is_dir().then_some(path)
}

/// Scores documents under the pretrained model of TinyStories, in windows of `t`.
fn report(assets: &Path, documents: &[Document], (batch, t): (u64, u64), extent: Extent) -> Report {
    let dir = assets.join("stories260k");
    let model = Model::of_checkpoint(&dir).expect("the asset is a checkpoint");
    let weights = Weights::open(&dir).expect("the asset has weights");
    let path = dir.to_str().expect("asset paths are UTF-8");
    let tokenizer = Tokenizer::open(path, 512).expect("the asset has a tokenizer");
    let (options, device) = (session::options(batch, t, false), Arc::new(Device::cpu(None)));
    let mut evaluator = Evaluator::new(model, &weights, options, (batch, t), device);
    let mut seen = 0;
    let report = evaluate(&mut evaluator, documents, &tokenizer, extent, &mut |done| {
        assert!(done.bytes >= seen, "progress never goes back");
        seen = done.bytes;
    });
    report.expect("the model runs")
}

fn agrees(loss: f64, reference: f64) {
    let error = (loss / reference - 1.0).abs();
    assert!(error < F32_LOSS, "{loss} and {reference} differ by {error:e}");
}

#[test]
fn a_story_has_the_reference_loss() {
    let Some(assets) = assets() else { return };
    let text = std::fs::read_to_string(assets.join("stories260k/expected.json"));
    let expected: serde_json::Value =
        serde_json::from_str(&text.expect("the asset is there")).expect("the asset is JSON");
    let story = expected["text"].as_str().expect("a text").to_string();
    let bytes = story.len() as u64;
    let document = Document { text: story, file: Arc::from(Path::new("story")), line: None };
    let total = report(&assets, &[document], (1, 512), Extent::default()).total;
    let ids = expected["text_ids"].as_array().expect("a list of ids");
    assert_eq!((total.tokens, total.bytes), (ids.len() as u64 - 1, bytes));
    agrees(total.loss(), expected["loss"].as_f64().expect("a loss"));
}

#[test]
fn each_document_has_the_reference_loss() {
    let Some(assets) = assets() else { return };
    // Targets and mean loss of the first documents in f64 by transformers 5.23, in windows of 512
    // targets that do not overlap, BOS in front of the first.
    let expected = [
        (1008, 3.741905929551649),
        (1825, 3.9804032943230023),
        (531, 4.171639904844426),
        (647, 2.950407679457817),
    ];
    let file = assets.join("text/c4-validation.json.gz").display().to_string();
    let mut documents = dataset::documents(&[file]).expect("the asset is a data set");
    documents.truncate(expected.len());
    for batch in [1, 3] {
        let extent = Extent { per_document: true, max_tokens: None };
        let report = report(&assets, &documents, (batch, 512), extent);
        assert_eq!(report.documents.len(), expected.len());
        for ((tally, document), (tokens, loss)) in
            report.documents.iter().zip(&documents).zip(expected)
        {
            assert_eq!((tally.tokens, tally.bytes), (tokens, document.text.len() as u64));
            agrees(tally.loss(), loss);
        }
    }
    let extent = Extent { per_document: false, max_tokens: Some(1008) };
    let cut = report(&assets, &documents, (2, 512), extent).total;
    agrees(cut.loss(), expected[0].1);
}
