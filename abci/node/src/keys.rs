//! The node key: one ed25519 seed in a file that only its owner may read.

use std::path::Path;

use ringseed_ledger::SigningKey;

use crate::error::{Code, Error, Result};
use crate::{layout, units};

/// First line of the file; a later format will say another number.
const HEADER: &str = "ringseed node key 1";

/// Makes a key from the system's randomness and writes it.
///
/// # Errors
/// I/O errors.
pub fn create(path: &Path) -> Result<SigningKey> {
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    let key = SigningKey::from_seed(&seed);
    layout::write_private(path, format!("{HEADER}\n{}\n", units::hex(&seed)).as_bytes())?;
    Ok(key)
}

/// Reads the key.
///
/// # Errors
/// [`Code::KeyFile`] when it is missing, of another format, or readable by others.
pub fn load(path: &Path) -> Result<SigningKey> {
    load_seed(path).map(|seed| SigningKey::from_seed(&seed))
}

/// Reads the seed that the key is made of, for a program that votes in our name.
///
/// # Errors
/// As [`load`].
pub fn load_seed(path: &Path) -> Result<[u8; 32]> {
    let refuse = |what: &str| Error::new(Code::KeyFile, format!("{}: {what}", path.display()));
    let exposed = layout::is_exposed(path).map_err(|error| refuse(&error.to_string()))?;
    if exposed {
        return Err(refuse("others than its owner may read the node key")
            .why("whoever has it can vote in this datatrust's name")
            .cure(format!("chmod 600 {}", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refuse(&error.to_string()))?;
    let seed = text.strip_prefix(HEADER).map(str::trim).and_then(units::parse_hex::<32>);
    seed.ok_or_else(|| refuse("this is no node key of version 1"))
}

/// Fills `out` from the system's randomness.
///
/// # Errors
/// [`Code::Io`] when the kernel has none.
pub fn fill_random(out: &mut [u8]) -> Result<()> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(out))
        .map_err(|error| Error::io("read", path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_read_back_unless_others_may_read_it() {
        let path = std::env::temp_dir().join(format!("rs-key-{}", std::process::id()));
        let made = create(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), made.public());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).unwrap_err();
        assert_eq!(error.code, Code::KeyFile);
        assert!(error.cure.unwrap().starts_with("chmod 600"));
        std::fs::write(&path, "ringseed node key 9\nabc").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(load(&path).unwrap_err().code, Code::KeyFile);
        std::fs::remove_file(path).unwrap();
    }
}
