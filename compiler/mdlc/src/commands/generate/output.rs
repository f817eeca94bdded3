//! What `mdlc generate` prints: one text as it is made, several in the order of their prompts.

use super::Prompt;
use crate::Failure;
use crate::commands::say;
use mdl_train::decoding::Decoding;
use mdl_train::generate::Event;
use mdl_train::tokenizer::Tokenizer;

/// How a sequence is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The prompt and its continuation.
    Text,
    /// Their ids, separated by spaces.
    Ids,
    /// One object on a line: prompt, text, ids, finish_reason.
    Json,
}

struct Sequence<'a> {
    prompt: &'a Prompt,
    decoding: Option<Decoding<'a>>,
    /// What is known of the continuation, in `Text` with the prompt in front.
    text: String,
    ids: Vec<u32>,
    reason: Option<&'static str>,
}

pub struct Output<'a> {
    form: Form,
    sequences: Vec<Sequence<'a>>,
    /// Sequences that are printed to their end.
    done: usize,
}

impl<'a> Output<'a> {
    pub fn new(
        form: Form,
        prompts: &'a [Prompt],
        tokenizer: &'a Tokenizer,
    ) -> Result<Output<'a>, Failure> {
        let mut sequences = Vec::new();
        for prompt in prompts {
            let mut decoding = tokenizer.decoding(true);
            let mut text = String::new();
            for id in &prompt.ids {
                text.push_str(&decoding.push(*id)?);
            }
            if form == Form::Json {
                text.clear();
            }
            let decoding = Some(decoding);
            sequences.push(Sequence { prompt, decoding, text, ids: Vec::new(), reason: None });
        }
        let output = Output { form, sequences, done: 0 };
        if output.streams() {
            let only = &output.sequences[0];
            say(&if form == Form::Ids { spaced(&only.prompt.ids) } else { only.text.clone() });
        }
        Ok(output)
    }

    /// One text has standard output for itself.
    fn streams(&self) -> bool {
        self.sequences.len() == 1 && self.form != Form::Json
    }

    /// An event of a batch whose first sequence is number `first`.
    pub fn take(&mut self, first: usize, event: Event) -> Result<(), Failure> {
        let streams = self.streams();
        match event {
            Event::Token(i, id) => {
                let sequence = &mut self.sequences[first + i];
                sequence.ids.push(id);
                let Some(decoding) = &mut sequence.decoding else { return Ok(()) };
                let piece = decoding.push(id)?;
                sequence.text.push_str(&piece);
                if streams {
                    say(&if self.form == Form::Ids { format!(" {id}") } else { piece });
                }
                Ok(())
            }
            Event::Finished(i, reason) => self.finish(first + i, reason.name()),
        }
    }

    /// Ends what is unfinished.
    pub fn interrupt(&mut self) -> Result<(), Failure> {
        (0..self.sequences.len()).try_for_each(|i| self.finish(i, "interrupted"))
    }

    fn finish(&mut self, i: usize, reason: &'static str) -> Result<(), Failure> {
        let streams = self.streams();
        let sequence = &mut self.sequences[i];
        if let Some(decoding) = sequence.decoding.take() {
            let rest = decoding.finish()?;
            sequence.text.push_str(&rest);
            sequence.reason = Some(reason);
            if streams {
                say(&if self.form == Form::Ids { "\n".into() } else { rest + "\n" });
                self.done = 1;
            }
        }
        while let Some(next) = self.sequences.get(self.done).filter(|s| s.reason.is_some()) {
            say(&self.block(next));
            self.done += 1;
        }
        Ok(())
    }

    fn block(&self, sequence: &Sequence) -> String {
        let Sequence { prompt, text, ids, reason, .. } = sequence;
        match self.form {
            Form::Text => format!("{text}\n\n"),
            Form::Ids => format!("{}\n", spaced(&[prompt.ids.as_slice(), ids].concat())),
            Form::Json => {
                let row = serde_json::json!({
                    "prompt": prompt.text, "text": text, "ids": ids, "finish_reason": reason,
                });
                format!("{row}\n")
            }
        }
    }
}

fn spaced(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(" ")
}
