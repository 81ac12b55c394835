//! The encoder.

use std::ops::Range;

/// Writes canonical bencoding. Calls that would write anything else are bugs of ours and panic.
#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
    open: Vec<OpenOut>,
}

#[derive(Debug)]
struct OpenOut {
    is_dict: bool,
    last_key: Option<Range<usize>>,
    /// A key was written and its value is due.
    wants_value: bool,
}

impl Encoder {
    /// Writes into a buffer of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes an integer.
    pub fn int(&mut self, value: impl Into<i128>) -> &mut Self {
        self.before_value();
        let value: i128 = value.into();
        self.out.extend_from_slice(format!("i{value}e").as_bytes());
        self
    }

    /// Writes a string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.before_value();
        self.string(value);
        self
    }

    /// Writes a value that is encoded already.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.before_value();
        self.out.extend_from_slice(value);
        self
    }

    /// Writes a key. Keys must come in order.
    pub fn key(&mut self, key: &[u8]) -> &mut Self {
        let open = self.open.last_mut().expect("a key outside of a dictionary");
        assert!(open.is_dict && !open.wants_value, "a key where a value is due");
        open.wants_value = true;
        if let Some(last) = open.last_key.take() {
            assert!(&self.out[last] < key, "keys out of order");
        }
        self.string(key);
        let end = self.out.len();
        if let Some(open) = self.open.last_mut() {
            open.last_key = Some(end - key.len()..end);
        }
        self
    }

    /// Begins a list.
    pub fn list(&mut self) -> &mut Self {
        self.begin(b'l')
    }

    /// Begins a dictionary.
    pub fn dict(&mut self) -> &mut Self {
        self.begin(b'd')
    }

    /// Ends the list or dictionary begun last.
    pub fn end(&mut self) -> &mut Self {
        let open = self.open.pop().expect("nothing to end");
        assert!(!open.wants_value, "a key without a value");
        self.out.push(b'e');
        self
    }

    /// The bytes written.
    pub fn finish(self) -> Vec<u8> {
        assert!(self.open.is_empty(), "a list or dictionary without its end");
        self.out
    }

    fn begin(&mut self, byte: u8) -> &mut Self {
        self.before_value();
        self.out.push(byte);
        self.open.push(OpenOut { is_dict: byte == b'd', last_key: None, wants_value: false });
        self
    }

    fn string(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value.len().to_string().as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(value);
    }

    fn before_value(&mut self) {
        if let Some(open) = self.open.last_mut().filter(|open| open.is_dict) {
            assert!(std::mem::take(&mut open.wants_value), "a value without a key");
        }
    }
}
