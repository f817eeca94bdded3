//! The files of one compilation: `FileId` to name and text, and byte offsets to lines.

use crate::span::{FileId, Span};
use std::sync::OnceLock;

/// One file.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    text: String,
    /// Byte offset at which each line starts; the first is 0. Only who reports something asks.
    lines: OnceLock<Vec<u32>>,
}

impl Source {
    fn lines(&self) -> &[u32] {
        self.lines.get_or_init(|| {
            let breaks = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0).chain(breaks.map(|(at, _)| at as u32 + 1)).collect()
        })
    }
}

/// Owns the texts that spans refer to. Ids are given in the order of `add`.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

impl SourceMap {
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> FileId {
        let (name, text) = (name.into(), text.into());
        self.sources.push(Source { name, text, lines: OnceLock::new() });
        FileId(self.sources.len() as u32 - 1)
    }

    pub fn len(&self) -> usize {
        self.sources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The name a file was added under; empty for an id of another map.
    pub fn name(&self, file: FileId) -> &str {
        self.sources.get(file.0 as usize).map_or("", |source| &source.name)
    }

    /// The text of a file; empty for an id of another map.
    pub fn text(&self, file: FileId) -> &str {
        self.sources.get(file.0 as usize).map_or("", |source| &source.text)
    }

    /// The text under a span; empty where the span does not fit the file.
    pub fn slice(&self, span: Span) -> &str {
        self.text(span.file).get(span.start as usize..span.end as usize).unwrap_or("")
    }

    /// Line and column of a byte offset, both from 1; the column counts characters.
    pub fn position(&self, file: FileId, offset: u32) -> (usize, usize) {
        let Some(source) = self.sources.get(file.0 as usize) else {
            return (1, 1);
        };
        let line = source.lines().partition_point(|start| *start <= offset).max(1);
        let start = source.lines()[line - 1] as usize;
        let end = (offset as usize).min(source.text.len());
        let column = source.text.get(start..end).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    /// The byte range of a line counted from 1, without its line break.
    pub fn line_range(&self, file: FileId, line: usize) -> std::ops::Range<usize> {
        let Some(source) = self.sources.get(file.0 as usize) else {
            return 0..0;
        };
        let Some(start) = line.checked_sub(1).and_then(|index| source.lines().get(index)) else {
            return 0..0;
        };
        let end = source.lines().get(line).map_or(source.text.len(), |next| *next as usize - 1);
        *start as usize..end
    }
}
