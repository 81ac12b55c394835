//! What became of a transaction: stable numbers, and texts that say what, why and what to do.

use core::fmt;

use crate::tx::TxError;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $cure:literal;)*) => {
        /// The result of a transaction. Numbers never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum TxCode {
            $($(#[$doc])* #[doc = concat!("`", $number, "`: ", $text, ".")] $name = $number,)*
        }

        impl TxCode {
            /// Every code, ascending.
            pub const ALL: &'static [TxCode] = &[$(TxCode::$name,)*];

            /// The stable number.
            pub fn number(self) -> u32 {
                match self { $(Self::$name => $number,)* }
            }

            /// The code of a number, if it has one.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The stable name, as scripts see it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What happened and why.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What to do about it.
            pub fn cure(self) -> &'static str {
                match self { $(Self::$name => $cure,)* }
            }
        }
    };
}

codes! {
    Ok = 0, "done", "nothing to do";
    TooLarge = 1, "the transaction is longer than the market allows", "split it";
    Malformed = 2, "the bytes are no canonical transaction", "build it with this program's version";
    UnknownVersion = 3, "the envelope has another version", "use the market's version of the program";
    UnknownKind = 4, "the market's rules do not know this kind", "use the market's version of the program";
    BadSignature = 5, "the signature does not verify for this signer in this market", "sign with the signer's key and this market's genesis hash";
    Expired = 6, "the height until which it was valid has passed", "sign it again";
    ValidTooLong = 7, "it would stay valid for too many heights", "sign it with a nearer last height";
    NonceUsed = 8, "the nonce was used before", "sign it again with the signer's next nonce";
    NonceAhead = 9, "the nonce is ahead of the signer's next one", "send the transactions before it first";
    BlockFull = 10, "the block holds no more bytes", "send it again";
    SignerBusy = 11, "the signer has too many transactions waiting", "wait until some are in a block";
    AlreadyRegistered = 20, "the key is registered or a member already", "nothing to do";
    RegistrationsFull = 21, "too many registrations wait for admission", "try again later";
    MembersFull = 22, "the market has as many members as it allows", "ask the members";
    NotRegistered = 23, "the key is not registered", "register it first";
    NotMember = 24, "the signer is no member", "have it admitted first";
    NotValidator = 25, "the signer has no power", "let a validator sign";
    AlreadyAdmitted = 26, "the key is a member already", "nothing to do";
    AlreadyVoted = 27, "the signer voted for this key before", "wait for the other validators";
    LastValidator = 28, "the last validator cannot leave", "let another member gain power first";
    Expelled = 29, "the key was expelled for signing twice", "none: use a new key";
    NameTaken = 30, "another member has this name", "choose another name";
    AlreadyCandidate = 40, "the data is a candidate already", "wait for its promotion or expiry";
    AlreadyListed = 41, "the data is listed already", "nothing to do";
    InGrace = 42, "the data was removed and its grace is not over", "offer it again after the grace";
    ListingTooLarge = 43, "the data is larger than the market allows", "split it";
    OpenBytesFull = 44, "the signer's open candidates would hold too many bytes", "wait for promotions";
    OpenCandidatesFull = 45, "the signer has too many open candidates", "wait for promotions";
    NotListed = 46, "there is no such listing or candidate", "check the identity";
    NotOwner = 47, "only the owner may remove a listing", "let the owner sign";
}

impl fmt::Display for TxCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name(), self.number(), self.text())
    }
}

impl From<&TxError> for TxCode {
    fn from(error: &TxError) -> Self {
        match error {
            TxError::TooLarge { .. } => Self::TooLarge,
            TxError::Decode(_) => Self::Malformed,
            TxError::UnknownVersion(_) => Self::UnknownVersion,
            TxError::UnknownKind(_) => Self::UnknownKind,
            TxError::BadSignature => Self::BadSignature,
        }
    }
}
