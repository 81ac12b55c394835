//! Bencoded values that need not be right: what the mutators change. Numbers and lengths are kept as they are
//! written, so that a leading zero can be; keys may be in any order and come twice.

/// A value, wrong or right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// The text between `i` and `e`.
    Int(String),
    Bytes(Vec<u8>),
    List(Vec<Node>),
    Dict(Vec<(Vec<u8>, Node)>),
    /// Anything, as it stands.
    Raw(Vec<u8>),
}

impl Node {
    pub fn int(value: impl Into<i128>) -> Node {
        Node::Int(value.into().to_string())
    }

    pub fn text(text: &str) -> Node {
        Node::Bytes(text.as_bytes().to_vec())
    }

    /// A dictionary, its keys put in order.
    pub fn dict<const N: usize>(entries: [(&str, Node); N]) -> Node {
        let mut entries: Vec<_> =
            entries.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value)).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Node::Dict(entries)
    }

    /// The value under a key; the first, if there are several.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Node::Dict(entries) = self else { return None };
        entries.iter().find(|(found, _)| found == key.as_bytes()).map(|(_, value)| value)
    }

    /// As [`Node::get`], to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let Node::Dict(entries) = self else { return None };
        entries.iter_mut().find(|(found, _)| found == key.as_bytes()).map(|(_, value)| value)
    }

    /// Puts a value under a key, where the order wants it.
    pub fn set(&mut self, key: &[u8], value: Node) {
        let Node::Dict(entries) = self else { return };
        match entries.binary_search_by(|(found, _)| found[..].cmp(key)) {
            Ok(at) => entries[at].1 = value,
            Err(at) => entries.insert(at, (key.to_vec(), value)),
        }
    }

    /// Takes a key away.
    pub fn remove(&mut self, key: &str) -> Option<Node> {
        let Node::Dict(entries) = self else { return None };
        let at = entries.iter().position(|(found, _)| found == key.as_bytes())?;
        Some(entries.remove(at).1)
    }

    /// The elements of a list.
    pub fn elements(&mut self) -> Option<&mut Vec<Node>> {
        match self {
            Node::List(elements) => Some(elements),
            _ => None,
        }
    }

    /// How many values there are, this one counted.
    pub fn count(&self) -> usize {
        1 + match self {
            Node::List(elements) => elements.iter().map(Node::count).sum(),
            Node::Dict(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
            _ => 0,
        }
    }

    /// The value of some number in this order: itself, then those in it.
    pub fn nth(&mut self, mut at: usize) -> Option<&mut Node> {
        if at == 0 {
            return Some(self);
        }
        at -= 1;
        let inner: Vec<&mut Node> = match self {
            Node::List(elements) => elements.iter_mut().collect(),
            Node::Dict(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
            _ => return None,
        };
        for node in inner {
            let count = node.count();
            if at < count {
                return node.nth(at);
            }
            at -= count;
        }
        None
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        let string = |out: &mut Vec<u8>, text: &[u8]| {
            out.extend(text.len().to_string().as_bytes());
            out.push(b':');
            out.extend(text);
        };
        match self {
            Node::Int(digits) => {
                out.push(b'i');
                out.extend(digits.as_bytes());
                out.push(b'e');
            }
            Node::Bytes(text) => string(out, text),
            Node::Raw(raw) => out.extend(raw),
            Node::List(elements) => {
                out.push(b'l');
                elements.iter().for_each(|element| element.write(out));
                out.push(b'e');
            }
            Node::Dict(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    string(out, key);
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }
}
