//! How blocks of ours are named to peers that see the v1 view alone.
//!
//! We ask for files and never for the pads behind them. To a client that knows nothing of v2 a piece is
//! cut into whole blocks wherever its files end, and some (seen: rqbit 9.1) hang up at a request that is
//! cut in any other way. So such peers are asked for the whole block; the link checks that the pad behind
//! the file is zeros (BEP 47) and keeps none of it. libtorrent asks for v1 torrents in the same way.

use super::super::error::LinkError;
use super::super::message::RawBlock;
use super::Channel;
use crate::geometry::{BlockRef, Geometry};

impl Channel {
    /// Bytes of pad that the peer sends behind a block of ours.
    pub(in super::super) fn pad_of(&self, block: BlockRef) -> u32 {
        let geometry = self.config.geometry.as_ref();
        geometry.filter(|geometry| self.asks_into_pads(geometry)).map_or(0, |g| g.pad_behind(block))
    }

    /// A block of ours as it is named to the peer.
    pub(in super::super) fn named(&self, block: BlockRef) -> RawBlock {
        let raw = RawBlock::from(block);
        RawBlock { len: raw.len + self.pad_of(block), ..raw }
    }

    /// The block of ours that we would name so; `None` when there is none, or no layout yet.
    pub(super) fn asked_as(&self, raw: RawBlock) -> Result<Option<BlockRef>, LinkError> {
        let Some(geometry) = &self.config.geometry else { return Ok(None) };
        let block = geometry.block(raw.piece, raw.begin, raw.len)?;
        if self.asks_into_pads(geometry) {
            Ok(geometry.without_pad(block))
        } else {
            Ok(Some(block))
        }
    }

    /// The bit of BEP 52 and the v2 name are the signs that a peer knows where files end.
    fn asks_into_pads(&self, geometry: &Geometry) -> bool {
        geometry.kind().has_v1() && !self.reserved.v2() && !self.is_v2
    }
}
