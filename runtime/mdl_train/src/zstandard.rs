//! Reads Zstandard files: frames one after the other, as `zstd` and `cat a.zst b.zst` make them.

use ruzstd::decoding::StreamingDecoder;
use std::io::{self, BufRead, Read};

/// The unpacked bytes of all frames of a file.
pub(crate) struct Frames<R: BufRead> {
    /// Between two frames the file itself, inside of one its decoder.
    place: Place<R>,
}

enum Place<R: BufRead> {
    Between(R),
    Inside(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    /// After an error, which nothing follows.
    Lost,
}

impl<R: BufRead> Frames<R> {
    pub(crate) fn new(file: R) -> Self {
        Self { place: Place::Between(file) }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.place = match std::mem::replace(&mut self.place, Place::Lost) {
                Place::Lost => return Ok(0),
                Place::Between(mut file) => {
                    if file.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(file).map_err(io::Error::other)?;
                    Place::Inside(Box::new(decoder))
                }
                Place::Inside(mut decoder) => {
                    let n = decoder.read(out)?;
                    if n > 0 || out.is_empty() {
                        self.place = Place::Inside(decoder);
                        return Ok(n);
                    }
                    Place::Between(decoder.into_inner())
                }
            }
        }
    }
}
