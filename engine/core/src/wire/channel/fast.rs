//! The fast extension's hints on a channel (BEP 6): pieces that may be asked for while choked, and
//! pieces that are cheap for their holder.

use super::{Channel, ChannelEvent, Out};
use crate::geometry::{BLOCK_LEN, BlockRef, PieceIndex};
use crate::wire::error::LinkError;
use crate::wire::message::Message;

/// Pieces that a peer may allow us at most; what it names beyond is not remembered. Honest peers name
/// ten or so.
pub(super) const ALLOWED_MAX: usize = 64;

impl Channel {
    /// The pieces that the peer gives even while it chokes us.
    pub fn allowed_fast(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.allowed_in.iter().copied()
    }

    /// Lets the peer ask for a piece even while we choke it: for as many blocks as the piece has, once.
    /// Nothing happens where the peer has no fast extension. Name only what is announced.
    pub fn send_allowed_fast(&mut self, piece: PieceIndex) {
        let Some(geometry) = self.config.geometry.as_ref().filter(|_| self.reserved.fast()) else {
            return;
        };
        let blocks = geometry.piece_len(piece).div_ceil(BLOCK_LEN);
        if self.allowed_out.insert(piece, blocks).is_none() {
            self.out.push_back(Out::Plain(Message::AllowedFast(piece.get())));
        }
    }

    /// Ends what [`Channel::send_allowed_fast`] has given. BEP 6 knows no message for that: requests are
    /// rejected from now on.
    pub fn revoke_allowed_fast(&mut self) {
        self.allowed_out.clear();
        if self.choking {
            for block in self.peer_requests.take() {
                self.push_reject(block.into());
            }
        }
    }

    /// Tells the peer that a piece is cheap for us. Nothing happens where the peer has no fast extension.
    pub fn send_suggest(&mut self, piece: PieceIndex) {
        if self.reserved.fast() {
            self.out.push_back(Out::Plain(Message::Suggest(piece.get())));
        }
    }

    /// Takes a request while choked off what the peer was given of the piece.
    pub(super) fn spend_allowed(&mut self, block: BlockRef) -> bool {
        let Some(left) = self.allowed_out.get_mut(&block.piece()) else {
            return false;
        };
        let blocks = block.len().div_ceil(BLOCK_LEN);
        if *left < blocks {
            return false;
        }
        *left -= blocks;
        if *left == 0 {
            self.allowed_out.remove(&block.piece());
        }
        true
    }

    pub(super) fn handle_suggest(&mut self, raw: u32) -> Result<(), LinkError> {
        if let Some(geometry) = &self.config.geometry {
            self.events.push_back(ChannelEvent::Suggest(geometry.piece(raw)?));
        }
        Ok(())
    }

    pub(super) fn handle_allowed_fast(&mut self, raw: u32) -> Result<(), LinkError> {
        if let Some(geometry) = &self.config.geometry {
            let piece = geometry.piece(raw)?;
            if self.allowed_in.len() < ALLOWED_MAX && self.allowed_in.insert(piece) {
                self.events.push_back(ChannelEvent::AllowedFast(piece));
            }
        }
        Ok(())
    }
}
