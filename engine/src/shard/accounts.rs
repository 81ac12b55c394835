//! Whose connections count as one peer's when payload is shared out: those of one address.
//!
//! An IPv6 /64 is one address. Loopback is not exempt: programs of one machine share among themselves as they like,
//! and share with others as one. Of the nodes of a market each connection counts by itself: they have one for
//! every listing, what they take of whom is the schedule's, and taking turns made on-boarding a third slower.

use std::time::Instant;

use ringseed_core::share::{Shares, Turn};
use ringseed_core::wire::PeerId;

use super::Shard;
use super::peer::{ConnId, Who};
use super::timers::Timer;

/// An address; of a member of the market each connection by itself.
pub(super) type Account = (Who, Option<ConnId>);

/// Accounts, and connections that are held back.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    shares: Shares<Account, ConnId>,
    held_back: Vec<ConnId>,
    /// When they ask again.
    ask_at: Option<Instant>,
}

impl Shard {
    /// A connection has joined a listing: from here on what it is sent counts for its account.
    pub(super) fn join_account(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let alone = self.door.is_member(conn.addr.ip()).then_some(id);
        let account = (Who::of(PeerId([0; 20]), conn.addr), alone);
        conn.account = Some(account);
        self.accounts.shares.join(account, id);
    }

    /// It is gone.
    pub(super) fn leave_account(&mut self, account: Option<Account>, id: ConnId) {
        if let Some(account) = account {
            self.accounts.shares.leave(account, id);
        }
    }

    /// Whether a connection in the round is to be sent something now. If not, it comes back to the round by
    /// itself.
    pub(super) fn is_its_turn(&mut self, id: ConnId) -> bool {
        if !self.accounts.shares.is_contended() {
            return true;
        }
        let Some(conn) = self.conns.get_mut(&id) else { return false };
        let Some(account) = conn.account else { return true };
        let Turn::NotBefore(at) = self.accounts.shares.turn(self.now, account, id) else {
            return true;
        };
        conn.is_queued = true;
        self.accounts.held_back.push(id);
        if self.accounts.ask_at.is_none() {
            self.accounts.ask_at = Some(at);
            self.timers.set(at, Timer::Upload);
        }
        false
    }

    /// Puts connections that were held back into the round again, when it is time.
    pub(super) fn ask_again(&mut self) {
        if self.accounts.ask_at.is_some_and(|at| at <= self.now) {
            self.accounts.ask_at = None;
            self.upload_round.extend(self.accounts.held_back.drain(..));
        }
    }

    /// Payload goes out over a connection.
    pub(super) fn count_for_account(&mut self, id: ConnId, bytes: u64) {
        if bytes > 0
            && self.accounts.shares.is_contended()
            && let Some(account) = self.conns.get(&id).and_then(|conn| conn.account)
        {
            self.accounts.shares.sent(account, id, bytes);
        }
    }
}
