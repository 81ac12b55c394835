//! The shard's connections by name.

use std::collections::BTreeMap;

use super::peer::{Conn, ConnId};

/// Connections in the order they were made. Each lies in memory of its own: a tree that only grows at its
/// end is half empty, and with thousands of idle peers that half would be their largest part.
#[derive(Debug, Default)]
pub(super) struct Conns {
    all: BTreeMap<ConnId, Box<Conn>>,
}

impl Conns {
    pub fn insert(&mut self, id: ConnId, conn: Conn) {
        self.all.insert(id, Box::new(conn));
    }

    pub fn remove(&mut self, id: &ConnId) -> Option<Conn> {
        self.all.remove(id).map(|conn| *conn)
    }

    pub fn get(&self, id: &ConnId) -> Option<&Conn> {
        self.all.get(id).map(|conn| &**conn)
    }

    pub fn get_mut(&mut self, id: &ConnId) -> Option<&mut Conn> {
        self.all.get_mut(id).map(|conn| &mut **conn)
    }

    pub fn contains_key(&self, id: &ConnId) -> bool {
        self.all.contains_key(id)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn keys(&self) -> impl Iterator<Item = &ConnId> {
        self.all.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &Conn> {
        self.all.values().map(|conn| &**conn)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ConnId, &Conn)> {
        self.all.iter().map(|(id, conn)| (id, &**conn))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&ConnId, &mut Conn)> {
        self.all.iter_mut().map(|(id, conn)| (id, &mut **conn))
    }
}

#[cfg(test)]
mod tests {
    use ringseed_core::wire::Channel;

    use super::*;
    use crate::shard::Flight;

    /// Thousands of idle peers are bounded by what each keeps: four KiB in all (`tests/integration/idle.rs`
    /// measures that). These are the fixed part of it; bitfields, the driver's tables and what the
    /// allocator adds come on top. Whoever needs more here boxes what idle peers do not have.
    #[test]
    fn what_every_connection_keeps_is_small() {
        let fixed = size_of::<Conn>() + size_of::<Channel>() + size_of::<Flight>();
        assert!(fixed <= 1700, "{fixed} bytes");
    }
}
