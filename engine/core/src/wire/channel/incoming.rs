//! What the peer says on a channel: every message but blocks.

use std::time::Instant;

use super::super::error::LinkError;
use super::super::extension::{ExtendedHandshake, MetadataMessage, decode_dont_have, ours};
use super::super::message::{Message, RawBlock};
use super::super::metadata::METADATA_PIECE_LEN;
use super::{
    ANSWER_BYTES_MAX, Channel, ChannelEvent, Out, REFUSED_REQUESTS_SLACK, REFUSED_WINDOW, hashes_of,
};
use crate::bitfield::Bitfield;
use crate::geometry::{BlockRef, GeometryError, PIECE_COUNT_MAX};

/// Length of a have on the wire, in bytes (BEP 3).
const HAVE_MESSAGE_LEN: usize = 9;

impl Channel {
    /// Takes in any message but `piece`.
    pub(in super::super) fn handle_message(
        &mut self,
        now: Instant,
        message: Message<'_>,
    ) -> Result<(), LinkError> {
        self.check_pace(now, &message)?;
        match message {
            Message::KeepAlive | Message::Unknown { .. } | Message::Piece { .. } => {}
            Message::Choke => self.handle_choke(),
            Message::Unchoke => {
                if std::mem::replace(&mut self.peer_choking, false) {
                    self.events.push_back(ChannelEvent::Unchoked);
                }
            }
            Message::Interested => {
                if !std::mem::replace(&mut self.peer_interested, true) {
                    self.events.push_back(ChannelEvent::Interested);
                }
            }
            Message::NotInterested => {
                if std::mem::replace(&mut self.peer_interested, false) {
                    self.events.push_back(ChannelEvent::NotInterested);
                }
            }
            Message::Bitfield(bytes) if self.has_spoken || self.availability_said => {
                self.handle_late_bitfield(now, bytes)?;
            }
            Message::Bitfield(bytes) => self.handle_availability(Err(bytes))?,
            Message::HaveAll => self.handle_availability(Ok(true))?,
            Message::HaveNone => self.handle_availability(Ok(false))?,
            Message::Have(raw) => self.handle_have(now, raw)?,
            Message::Request(raw) => self.handle_request(now, raw)?,
            Message::Cancel(raw) => {
                if let Some(block) = self.peer_block(raw)?
                    && self.forget_peer_request(block)
                {
                    // BEP 6: a cancelled request is answered, too.
                    self.push_reject(raw);
                    self.events.push_back(ChannelEvent::Cancelled(block));
                }
            }
            Message::Reject(raw) => self.handle_reject(raw)?,
            Message::Suggest(raw) => self.handle_suggest(raw)?,
            Message::AllowedFast(raw) => self.handle_allowed_fast(raw)?,
            Message::Extended { id, payload } => self.handle_extended(now, id, payload)?,
            Message::HashRequest(request) => {
                self.check_replies()?;
                self.charge_answer(now, u64::from(hashes_of(&request)) * 32);
                if self.out_bytes > ANSWER_BYTES_MAX {
                    self.send_hash_reject(request);
                } else {
                    self.events.push_back(ChannelEvent::HashRequest(request));
                }
            }
            Message::Hashes { request, hashes } => {
                self.forget_hash_request(request)?;
                let (hashes, _) = hashes.as_chunks::<32>();
                let hashes = hashes.to_vec();
                self.events.push_back(ChannelEvent::Hashes { request, hashes });
            }
            Message::HashReject(request) => {
                self.forget_hash_request(request)?;
                self.events.push_back(ChannelEvent::HashesRejected(request));
            }
        }
        Ok(())
    }

    /// Charges a message to the allowance it falls under, and notes whether the peer has begun to talk
    /// about anything but itself.
    fn check_pace(&mut self, now: Instant, message: &Message<'_>) -> Result<(), LinkError> {
        let is_small_talk = match message {
            Message::KeepAlive
            | Message::Unknown { .. }
            | Message::Extended { .. }
            | Message::HashRequest(_) => true,
            Message::Choke | Message::Unchoke => {
                if !self.chokes.spend(now) {
                    return Err(LinkError::Flood { what: "chokes" });
                }
                self.has_spoken = true;
                true
            }
            Message::Interested
            | Message::NotInterested
            | Message::Cancel(_)
            | Message::Suggest(_)
            | Message::AllowedFast(_) => {
                self.has_spoken = true;
                true
            }
            // Each is bounded by what it is about: pieces, queued requests, requests of ours.
            Message::Have(_)
            | Message::Request(_)
            | Message::Reject(_)
            | Message::Piece { .. }
            | Message::Hashes { .. }
            | Message::HashReject(_) => {
                self.has_spoken = true;
                false
            }
            Message::Bitfield(_) | Message::HaveAll | Message::HaveNone => false,
        };
        if is_small_talk { self.count_chatter(now) } else { Ok(()) }
    }

    fn count_chatter(&mut self, now: Instant) -> Result<(), LinkError> {
        let is_flood = !self.chatter.spend(now);
        if is_flood { Err(LinkError::Flood { what: "chatter" }) } else { Ok(()) }
    }

    /// Charges a question by the answer that it asks for. One that is refused at once costs no work, and
    /// is chatter.
    fn charge_answer(&mut self, now: Instant, len_bytes: u64) {
        self.paused_until = self.answers.pay(now, len_bytes);
    }

    fn handle_choke(&mut self) {
        if std::mem::replace(&mut self.peer_choking, true) {
            return;
        }
        let mut dropped = Vec::new();
        if !self.reserved.fast() {
            dropped.extend(self.outstanding.drain(..));
            self.under_way = None;
            self.out.retain(|out| !matches!(out, Out::Plain(Message::Request(_))));
            // Some may be on the wire already.
            dropped.iter().for_each(|&block| self.give_up(block));
            self.waiting_since = None;
        }
        self.events.push_back(ChannelEvent::Choked { dropped });
    }

    fn handle_availability(&mut self, said: Result<bool, &[u8]>) -> Result<(), LinkError> {
        if std::mem::replace(&mut self.availability_said, true) {
            return Err(LinkError::AvailabilityTwice);
        }
        if self.has_spoken {
            return Err(LinkError::AvailabilityLate);
        }
        let Some(geometry) = &self.config.geometry else {
            self.raw.first = Some(said.map_err(<[u8]>::to_vec));
            return Ok(());
        };
        let count = geometry.piece_count();
        self.peer_has = Some(match said {
            Ok(true) => Bitfield::full(count),
            Ok(false) => Bitfield::new(count),
            Err(bytes) => Bitfield::from_wire(bytes, count)?,
        });
        self.events.push_back(ChannelEvent::Availability);
        Ok(())
    }

    /// A bitfield in the middle of the conversation. BEP 3 has it only as the first message, but aria2
    /// (seen: 1.36) sends one wherever it is shorter than the haves it stands for. So it is read as
    /// those haves: it adds pieces and takes none away. One that is longer than its news would be as
    /// haves counts as a useless have, so that nobody makes us read long bitfields for nothing.
    fn handle_late_bitfield(&mut self, now: Instant, bytes: &[u8]) -> Result<(), LinkError> {
        self.count_chatter(now)?;
        let Some(geometry) = &self.config.geometry else {
            if !matches!(self.raw.first, Some(Ok(true))) {
                self.availability_said = true;
                self.raw.first = Some(Err(bytes.to_vec()));
            }
            return Ok(());
        };
        let count = geometry.piece_count();
        let said = Bitfield::from_wire(bytes, count)?;
        let has = self.peer_has.get_or_insert_with(|| Bitfield::new(count));
        let before = has.count();
        has.or_with(&said);
        let news = has.count() - before;
        let is_first = !std::mem::replace(&mut self.availability_said, true);
        if news > 0 || is_first {
            self.events.push_back(ChannelEvent::Availability);
        }
        if (news as usize) * HAVE_MESSAGE_LEN < bytes.len() {
            self.count_useless_have(now)?;
        }
        Ok(())
    }

    fn handle_have(&mut self, now: Instant, raw: u32) -> Result<(), LinkError> {
        let first = !std::mem::replace(&mut self.availability_said, true);
        let Some(geometry) = &self.config.geometry else {
            if raw >= PIECE_COUNT_MAX {
                let count = PIECE_COUNT_MAX;
                return Err(GeometryError::PieceOutOfRange { raw, count }.into());
            }
            let byte_index = (raw / 8) as usize;
            if self.raw.haves.len() <= byte_index {
                self.raw.haves.resize(byte_index + 1, 0);
            }
            self.raw.haves[byte_index] |= 0x80 >> (raw % 8);
            return Ok(());
        };
        let piece = geometry.piece(raw)?;
        let count = geometry.piece_count();
        let has = self.peer_has.get_or_insert_with(|| Bitfield::new(count));
        let news = has.set(piece);
        if first {
            self.events.push_back(ChannelEvent::Availability);
        } else if news {
            self.events.push_back(ChannelEvent::Have(piece));
        } else {
            self.count_useless_have(now)?;
        }
        Ok(())
    }

    fn count_useless_have(&mut self, now: Instant) -> Result<(), LinkError> {
        if self.useless_haves.spend(now) { Ok(()) } else { Err(LinkError::Flood { what: "haves" }) }
    }

    fn handle_request(&mut self, now: Instant, raw: RawBlock) -> Result<(), LinkError> {
        self.check_replies()?;
        let block = self.peer_block(raw)?;
        let full = self.peer_requests.len() >= self.bounds.requests_in_max as usize;
        match block {
            Some(block) if self.peer_requests.contains(block) => return self.count_chatter(now),
            Some(block) if !full && (!self.choking || self.spend_allowed(block)) => {
                self.peer_requests.push(block);
                self.events.push_back(ChannelEvent::Request(block));
            }
            _ => {
                // Choked, too many, or a torrent that we know nothing of yet.
                if self.refused_since.is_none_or(|since| since + REFUSED_WINDOW <= now) {
                    (self.refused_requests, self.refused_since) = (0, Some(now));
                }
                self.refused_requests += 1;
                self.push_reject(raw);
            }
        }
        let is_flood = self.refused_requests > self.bounds.requests_in_max + REFUSED_REQUESTS_SLACK;
        if is_flood { Err(LinkError::Flood { what: "requests" }) } else { Ok(()) }
    }

    fn handle_reject(&mut self, raw: RawBlock) -> Result<(), LinkError> {
        let block = self.asked_as(raw)?;
        let not_requested = LinkError::RejectNotRequested { block: raw };
        let block = block.ok_or(not_requested.clone())?;
        if self.forget_outstanding(block) {
            if self.outstanding.is_empty() {
                self.waiting_since = None;
            }
            self.events.push_back(ChannelEvent::Rejected(block));
            Ok(())
        } else if self.forget_given_up(block) {
            Ok(())
        } else {
            Err(not_requested)
        }
    }

    fn handle_extended(&mut self, now: Instant, id: u8, payload: &[u8]) -> Result<(), LinkError> {
        match id {
            ours::HANDSHAKE => {
                let extended = ExtendedHandshake::decode(payload)?;
                self.peer_extended = Some(extended.clone());
                self.events.push_back(ChannelEvent::Extended(extended));
            }
            ours::METADATA => self.handle_metadata(now, MetadataMessage::decode(payload)?)?,
            ours::DONT_HAVE => {
                let raw = decode_dont_have(payload)?;
                if let Some(geometry) = &self.config.geometry {
                    let piece = geometry.piece(raw)?;
                    if self.peer_has.as_mut().is_some_and(|has| has.clear(piece)) {
                        self.events.push_back(ChannelEvent::DontHave(piece));
                    }
                    self.count_useless_have(now)?;
                } else if let Some(byte) = self.raw.haves.get_mut((raw / 8) as usize) {
                    *byte &= !(0x80 >> (raw % 8));
                }
            }
            ours::UPLOAD_ONLY => {
                let on = payload.first().is_some_and(|&on| on != 0);
                let extended = self.peer_extended.get_or_insert_default();
                extended.upload_only = on;
                self.events.push_back(ChannelEvent::Extended(extended.clone()));
            }
            _ => {} // an id that we have not given out; BEP 10 says to ignore it
        }
        Ok(())
    }

    fn handle_metadata(
        &mut self,
        now: Instant,
        message: MetadataMessage<'_>,
    ) -> Result<(), LinkError> {
        let event = match message {
            // Who has not said under which number it takes answers gets none.
            MetadataMessage::Request { .. } if !self.can_metadata() => return Ok(()),
            MetadataMessage::Request { index } => {
                self.check_replies()?;
                if self.out_bytes > ANSWER_BYTES_MAX || self.has_metadata_enough() {
                    self.send_metadata_reject(index);
                    return Ok(());
                }
                self.metadata_asked += 1;
                self.charge_answer(now, u64::from(METADATA_PIECE_LEN));
                ChannelEvent::MetadataRequest { index }
            }
            MetadataMessage::Data { index, total_len_bytes, data } => {
                ChannelEvent::MetadataPiece { index, total_len_bytes, data: data.to_vec() }
            }
            MetadataMessage::Reject { index } => ChannelEvent::MetadataRejected { index },
            MetadataMessage::Unknown => return Ok(()),
        };
        self.events.push_back(event);
        Ok(())
    }

    /// What the peer asks for; `None` while the layout is unknown.
    fn peer_block(&self, raw: RawBlock) -> Result<Option<BlockRef>, LinkError> {
        let Some(geometry) = &self.config.geometry else {
            return Ok(None);
        };
        Ok(Some(geometry.request(raw.piece, raw.begin, raw.len)?))
    }
}
