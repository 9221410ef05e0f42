use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::cases;

fn hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// As the data path sees an id: behind it stands something else.
fn query(id: &[u8], long: bool) -> Query {
    let mut bytes = [0xa5; 24];
    bytes[..id.len()].copy_from_slice(id);
    bytes[20] = 0;
    let word = |i: usize| u32::from_be_bytes(std::array::from_fn(|j| bytes[1 + i * 4 + j]));
    let mut words: [u32; 5] = std::array::from_fn(word);
    words[4] &= 0xffff_ff00;
    let length = if long { id.len() as u32 } else { 0 };
    Query { service: 0, first: id[0].into(), length, words }
}

const KEY: &str = "8f95f09245765f80256934e50c66207f";

/// Appendix B of draft-ietf-quic-load-balancers-21: configuration, key, server id, nonce, connection id; and the example of
/// section 5.4.2.3. (Two lines are misprinted there. The second: its nonce lacks a digit, and the first octet of its id has one
/// too many. The last but one: its id is of configuration 0, not 3.)
const VECTORS: [(u8, Option<&str>, &str, &str, &str); 7] = [
    (0, None, "c4605e", "4504cc4f", "07c4605e4504cc4f"),
    (1, None, "350d28b420", "3487d970b0", "2a350d28b4203487d970b0"),
    (0, Some(KEY), "ed793a", "ee080dbf", "0720b1d07b359d3c"),
    (1, Some(KEY), "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
    (2, Some(KEY), "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
    (0, Some(KEY), "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
    (0, Some("fdf726a9893ec05c0632d3956680baf0"), "31441a", "9c69c275", "0767947d29be054a"),
];

#[test]
fn the_drafts_vectors_are_read_and_written() {
    for (config, key, server_id, nonce, id) in VECTORS {
        let (server_id, nonce, id) = (hex(server_id), hex(nonce), hex(id));
        let codec = Codec {
            config,
            server_id_length: server_id.len() as u8,
            nonce_length: nonce.len() as u8,
            key: key.map(|key| hex(key).try_into().unwrap()),
        };
        let reader = codec.reader(true).unwrap();
        for long in [true, false] {
            let query = query(&id, long);
            assert!(reader.fits(&query), "{codec:?}");
            assert_eq!(Some(reader.server_id(&query.words)), Codec::server_id(&server_id), "{codec:?}");
        }
        assert_eq!(codec.encode(&server_id, &nonce), Some(id), "{codec:?}");
    }
}

#[test]
fn a_codec_has_room_for_its_parts() {
    let of = |config, server_id_length, nonce_length| {
        Codec { config, server_id_length, nonce_length, key: None }.check()
    };
    for (config, server, nonce) in [(0, 1, 4), (6, 15, 4), (3, 1, 18), (1, 8, 8)] {
        assert_eq!(of(config, server, nonce), Ok(()), "{config} {server} {nonce}");
    }
    assert_eq!(of(7, 1, 4), Err(Refused::Config));
    assert_eq!(of(0, 0, 8), Err(Refused::ServerId));
    assert_eq!(of(0, 8, 3), Err(Refused::Nonce));
    assert_eq!(of(0, 16, 4), Err(Refused::TooLong));
    assert_eq!(of(0, 255, 255), Err(Refused::TooLong));
    let codec = Codec { config: 0, server_id_length: 2, nonce_length: 6, key: None };
    assert_eq!(codec.encode(&[1], &[0; 6]), None, "parts of other lengths");
    assert_eq!(Codec::server_id(&[0; 17]), None);
}

#[test]
fn an_id_that_is_too_short_is_nobodys() {
    let codec = Codec { config: 0, server_id_length: 2, nonce_length: 6, key: None };
    let id = codec.encode(&[1, 2], &[9; 6]).unwrap();
    for tells_length in [false, true] {
        let reader = codec.reader(tells_length).unwrap();
        assert!(reader.fits(&query(&id, true)) && reader.fits(&query(&id, false)));
        assert!(!reader.fits(&query(&id[..8], true)));
        // Bytes that the server has appended for itself.
        let mut longer = id.clone();
        longer.extend([7, 7, 7]);
        longer[0] += 3;
        assert!(reader.fits(&query(&longer, true)) && reader.fits(&query(&longer, false)));
        let mut lying = id.clone();
        lying[0] -= 1;
        assert_eq!(reader.fits(&query(&lying, true)), !tells_length);
        assert_eq!(reader.fits(&query(&lying, false)), !tells_length);
    }
}

#[test]
fn clients_choose_the_ids_of_initial_and_0rtt_packets() {
    for (version, opening) in [(1, [true, true, false, false]), (0x6b33_43cf, [false, true, true, false])] {
        for (kind, opening) in (0..4).zip(opening) {
            for fixed in [0, 0x40] {
                assert_eq!(opens(0x80 | fixed | kind << 4 | 3, version), opening, "{kind} of {version:#x}");
            }
        }
    }
    assert!((0..4).all(|kind| !opens(0xc0 | kind << 4, 2)), "nothing is known of other versions");
}

fn codecs() -> impl Strategy<Value = (Codec, Vec<u8>, Vec<u8>)> {
    (0..=MAX_CONFIG, 1..=MAX_SERVER_ID, proptest::option::of(uniform16(any::<u8>())))
        .prop_flat_map(|(config, server, key)| {
            (Just(config), Just(key), vec(any::<u8>(), server), vec(any::<u8>(), MIN_NONCE..MAX_ID - server))
        })
        .prop_map(|(config, key, server_id, nonce)| {
            let (server_id_length, nonce_length) = (server_id.len() as u8, nonce.len() as u8);
            (Codec { config, server_id_length, nonce_length, key }, server_id, nonce)
        })
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn who_is_written_into_an_id_is_read_from_it((codec, server_id, nonce) in codecs()) {
        let id = codec.encode(&server_id, &nonce).unwrap();
        prop_assert_eq!(id.len(), 1 + server_id.len() + nonce.len());
        prop_assert_eq!((id[0] >> 5, usize::from(id[0] & 31)), (codec.config, id.len() - 1));
        let reader = codec.reader(true).unwrap();
        let query = query(&id, false);
        prop_assert!(reader.fits(&query));
        prop_assert_eq!(Some(reader.server_id(&query.words)), Codec::server_id(&server_id));
        if codec.key.is_some() && server_id.len() > 4 {
            prop_assert_ne!(&id[1..=server_id.len()], &server_id[..], "it is not seen");
        }
    }

    #[test]
    fn bytes_move_as_they_say(bytes in vec(any::<u8>(), 20), by in 0usize..10) {
        let mut all = bytes.clone();
        all[19] = 0;
        let word = |bytes: &[u8], i: usize| u32::from_be_bytes(bytes[i * 4..i * 4 + 4].try_into().unwrap());
        let words: [u32; 5] = std::array::from_fn(|i| word(&all, i));
        all.resize(40, 0);
        let left = moved_left(&words, by as u32);
        let expected: [u32; 3] = std::array::from_fn(|i| word(&all[by..], i));
        prop_assert_eq!(left, expected);
        let mut shifted = vec![0; by];
        shifted.extend(&bytes[..12]);
        shifted.resize(40, 0);
        let right: [u32; 4] = std::array::from_fn(|i| word(&shifted, i));
        prop_assert_eq!(moved_right([word(&bytes, 0), word(&bytes, 1), word(&bytes, 2)], by as u32), right);
    }
}
