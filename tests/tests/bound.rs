//! What a run is bound to: a `config.json` gives a preset back, and tables of positions bound the
//! sequence.

use mdl_check::config::{Config, Setting};
use mdl_check::config_json::to_json;
use mdl_check::entry::EntryOptions;
use mdl_driver::embedded;
use mdl_driver::front::Front;
use mdl_ir::reach::{Reach, reach};

/// Every field, sizes by their numbers.
fn fields(config: &Config, path: &str, out: &mut Vec<String>) {
    for (name, setting) in &config.fields {
        let value = match setting {
            Setting::Config(inner) => {
                fields(inner, &format!("{path}{name}."), out);
                continue;
            }
            Setting::Size(s) => format!("{}", s.as_f64()),
            other => format!("{other:?}"),
        };
        out.push(format!("{path}{name} = {value}"));
    }
}

#[test]
fn config_json_gives_every_preset_back() {
    let embedded = embedded::MODELS.iter().map(|(n, t)| (n.to_string(), t.to_string()));
    for (file, text) in mdl_tests::models().into_iter().chain(embedded) {
        let mut front = Front::load(&file, &text, &|_| None);
        for preset in front.presets() {
            let config = front.preset(&preset).expect("checked elsewhere");
            let json = serde_json::Value::Object(to_json(&front.program, &config, None));
            let again = front.config_json(&json);
            let again = again.unwrap_or_else(|| panic!("{file}: {}", front.report(false)));
            let (mut a, mut b) = (Vec::new(), Vec::new());
            fields(&config, "", &mut a);
            fields(&again, "", &mut b);
            assert_eq!(a, b, "{file}, {preset}: {json}");
        }
    }
}

#[test]
fn tables_of_positions_bound_the_sequence() {
    for (file, longest) in [("learned.mdl", Some(7)), ("gpt2.mdl", Some(7)), ("gemma.mdl", None)] {
        let models = mdl_tests::models();
        let (_, text) = models.iter().find(|(name, _)| name == file).expect("a model there");
        let mut front = Front::load(file, text, &|_| None);
        let config = front.preset("small").expect("every model there has it");
        let sizes = vec![("B".into(), 1), ("T".into(), 5)];
        let graph = front.build(
            &config,
            "loss",
            &EntryOptions { sizes, documents: true, auxiliary: false },
        );
        let found = reach(&graph.expect("checked elsewhere"), "T");
        let table = "places".to_string();
        assert_eq!(found, longest.map(|longest| Reach { table, longest }), "{file}");
    }
}
