//! The table of error codes: one row and one page each. A code is never used for something else.
//!
//! `E00xx` lexing and limits, `E01xx` syntax, `E02xx` names and imports, `E03xx` shapes, `E04xx`
//! element types and configurations, `E09xx` what a run meets: data, checkpoints, flags, devices.

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    pub id: &'static str,
    pub title: &'static str,
    /// What `mdlc explain` prints: what it means, an example that fails with it, and a fix.
    pub page: &'static str,
}

macro_rules! code {
    ($id:literal, $title:literal) => {
        Code { id: $id, title: $title, page: include_str!(concat!("codes/", $id, ".md")) }
    };
}

/// All codes, in order.
pub const CODES: &[Code] = &[
    code!("E0001", "characters that are not part of the language"),
    code!("E0002", "a text has no closing quote"),
    code!("E0003", "a text has an escape that does not exist"),
    code!("E0004", "the file is larger than 16 MiB"),
    code!("E0005", "the file has more than 4,000,000 tokens"),
    code!("E0006", "a name is longer than 256 bytes"),
    code!("E0007", "brackets are nested more than 64 deep"),
    code!("E0008", "a list has more than 65,536 elements"),
    code!("E0009", "an expression has more than 256 operators"),
    code!("E0101", "the text does not follow the grammar"),
    code!("E0102", "a bracket is not closed"),
    code!("E0103", "a bracket closes nothing, or another kind of bracket"),
    code!("E0104", "comparisons do not chain"),
    code!("E0105", "the brackets of a call hold axes, not changes of axes"),
    code!("E0106", "brackets after a value hold changes of axes"),
    code!("E0107", "the only annotation is `@kernel(name)`"),
    code!("E0108", "a doc comment documents nothing"),
    code!("E0109", "kernels belong to the standard library"),
    code!("E0201", "unknown name"),
    code!("E0202", "a name is defined twice"),
    code!("E0203", "an import is not found"),
    code!("E0204", "unknown axis"),
    code!("E0205", "imports form a cycle or are too deep"),
    code!("E0206", "a parameter is never used"),
    code!("E0207", "unknown member"),
    code!("E0208", "a call has other arguments than its function"),
    code!("E0209", "a name is never used"),
    code!("E0301", "an operand has no such axis"),
    code!("E0302", "the sizes of one axis disagree"),
    code!("E0303", "the result differs from the declared type"),
    code!("E0304", "a split or merge does not multiply out"),
    code!("E0305", "a tensor has more than 8 axes"),
    code!("E0306", "an axis stands twice in a type"),
    code!("E0307", "a size is out of range"),
    code!("E0308", "a layer does not return the shape it takes"),
    code!("E0401", "element types disagree"),
    code!("E0402", "a configuration field is missing"),
    code!("E0403", "unknown configuration field"),
    code!("E0404", "an assertion does not hold"),
    code!("E0405", "a value has the wrong kind"),
    code!("E0406", "a value of `config.json` is missing or of the wrong kind"),
    code!("E0407", "a division of sizes leaves a remainder"),
    code!("E0408", "unknown preset"),
    code!("E0409", "two parameters have one checkpoint name"),
    code!("E0410", "a model lacks `loss` or `logits`"),
    code!("E0411", "a model expands to too much"),
    code!("E0412", "a function calls itself"),
    code!("E0413", "`loss` or `logits` has other arguments than a run gives"),
    code!("E0414", "an auxiliary loss does not fit its block"),
    code!("E0901", "data file is not found or cannot be read"),
    code!("E0902", "line is not a JSON object with a text field"),
    code!("E0903", "data file is not UTF-8"),
    code!("E0904", "data set is too short"),
    code!("E0905", "form of the data file is not read"),
    code!("E0911", "tokenizer file cannot be read"),
    code!("E0912", "token id is at or above the model's vocabulary"),
    code!("E0913", "tokenizer cannot be trained or written"),
    code!("E0921", "checkpoint is not found"),
    code!("E0922", "checkpoint file is damaged"),
    code!("E0923", "tensor is missing, extra, or of another shape or type"),
    code!("E0924", "checkpoint cannot be written"),
    code!("E0925", "checkpoint is of another model"),
    code!("E0926", "weights are not finite"),
    code!("E0931", "log file cannot be used"),
    code!("E0932", "loss curve cannot be drawn"),
    code!("E0941", "this command line does not go together"),
    code!("E0951", "loss is not finite"),
    code!("E0952", "device cannot run this"),
    code!("E0953", "the memory budget is too small"),
    code!("E0961", "generation has no room for this"),
    code!("E0962", "logits have no most likely token"),
    code!("E0971", "state file cannot be used"),
    code!("E0972", "state file is damaged"),
    code!("E0973", "disk has no room for the state"),
    code!("E0981", "table of tuned blocks cannot be used"),
];

/// The row of a code such as `E0301`.
pub fn find(id: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.id == id)
}
