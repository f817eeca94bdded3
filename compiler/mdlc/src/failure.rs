//! What a command fails with. There is no conversion from every error that prints itself: those
//! that know their code without printing it would lose it on the way.

use mdl_kernels::StateFileError;
use mdl_train::checkpoint::CheckpointError;
use mdl_train::evaluation::EvaluationError;
use mdl_train::generate::GenerateError;
use mdl_train::model::ModelError;
use mdl_train::tokenizer::TokenizerError;
use mdl_train::weights::WeightsError;

/// A message that says what is wrong and what to do.
#[derive(Debug)]
pub struct Failure(pub String);

impl Failure {
    /// An error with its code in front.
    pub fn coded(code: &str, e: impl std::fmt::Display) -> Failure {
        Failure(format!("error[{code}]: {e}"))
    }
}

impl From<ModelError> for Failure {
    fn from(e: ModelError) -> Self {
        Failure(e.to_string())
    }
}

impl From<GenerateError> for Failure {
    fn from(e: GenerateError) -> Self {
        Failure(e.to_string())
    }
}

impl From<EvaluationError> for Failure {
    fn from(e: EvaluationError) -> Self {
        Failure(e.to_string())
    }
}

impl From<CheckpointError> for Failure {
    fn from(e: CheckpointError) -> Self {
        Failure::coded(e.code(), e)
    }
}

impl From<WeightsError> for Failure {
    fn from(e: WeightsError) -> Self {
        Failure::coded(e.code(), e)
    }
}

impl From<TokenizerError> for Failure {
    fn from(e: TokenizerError) -> Self {
        Failure::coded(e.code(), e)
    }
}

impl From<StateFileError> for Failure {
    fn from(e: StateFileError) -> Self {
        Failure::coded(e.code(), e)
    }
}

/// Writing plain data as JSON fails for want of memory alone.
impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Failure(e.to_string())
    }
}
