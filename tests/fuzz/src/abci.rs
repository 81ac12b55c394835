//! The socket of a consensus daemon: frames in any cuts, and requests that a daemon would not make.

use ringseed_abci::shim::codec::{
    BUFFER_LEN_BYTES, FrameBuffer, FrameError, put_frame, request_len_bytes_max,
};
use tendermint_proto::v0_38::abci::{
    Request, RequestCheckTx, RequestFinalizeBlock, RequestInfo, RequestQuery, request,
};

use crate::source::{Source, damage, noise};

/// What is decoded does not depend on the cuts, and memory grows with what came and never with what
/// was declared.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut stream = Vec::new();
    let cut = 1 + usize::from(source.u16());
    for _ in 0..source.below(5) {
        put_frame(&request(&mut source), &mut stream);
        if source.below(4) == 0 {
            // A length of its own choosing, and what may follow it.
            prost::encoding::encode_varint(source.u64() >> source.below(64), &mut stream);
            stream.extend_from_slice(source.bytes(64));
        }
    }
    damage(&mut source, &mut stream);
    stream.extend_from_slice(source.rest());
    let whole = read(&stream, stream.len().max(1));
    let cuts = read(&stream, cut);
    assert_eq!(cuts, whole, "what is decoded depends on the cuts");
}

fn request(source: &mut Source<'_>) -> Request {
    let value = match source.below(5) {
        0 => request::Value::CheckTx(RequestCheckTx {
            tx: source.bytes(200).to_vec().into(),
            r#type: source.byte().into(),
        }),
        1 => {
            // Long enough to be given back instead of copied.
            let len_bytes = usize::from(source.u16());
            let tx = noise(3, len_bytes).into();
            request::Value::CheckTx(RequestCheckTx { tx, r#type: 0 })
        }
        2 => {
            let height = source.u64() as i64;
            let txs = (0..source.below(4)).map(|_| noise(4, usize::from(source.u16())).into());
            let txs = txs.collect();
            request::Value::FinalizeBlock(RequestFinalizeBlock {
                txs,
                height,
                ..Default::default()
            })
        }
        3 => request::Value::Query(RequestQuery {
            data: source.bytes(40).to_vec().into(),
            path: "/store".to_owned(),
            height: source.u64() as i64,
            prove: source.flag(),
        }),
        _ => request::Value::Info(RequestInfo::default()),
    };
    Request { value: Some(value) }
}

/// Everything that the frames of `stream` say, up to the first error that ends it.
fn read(mut stream: &[u8], cut: usize) -> (Vec<Result<Request, FrameError>>, bool) {
    let mut buffer = FrameBuffer::new(request_len_bytes_max);
    let mut found = Vec::new();
    let mut came = 0;
    while !stream.is_empty() {
        let space = buffer.space();
        assert!(!space.is_empty());
        let len = stream.len().min(cut).min(space.len());
        space[..len].copy_from_slice(&stream[..len]);
        stream = &stream[len..];
        came += len;
        buffer.handle_received(len);
        assert!(buffer.capacity_bytes() <= BUFFER_LEN_BYTES.max(2 * came), "memory by a claim");
        loop {
            match buffer.poll_message::<Request>() {
                Ok(None) => break,
                Ok(Some(message)) => found.push(Ok(message)),
                Err(error @ FrameError::Decode(_)) => found.push(Err(error)),
                Err(error) => {
                    found.push(Err(error));
                    return (found, false);
                }
            }
        }
    }
    (found, buffer.is_mid_frame())
}
