package seal

import (
	"time"

	"github.com/fxamacker/cbor/v2"
)

// encodeCBOR gives RFC 8949 section 4.2.1's deterministic encoding.
func encodeCBOR(v any) ([]byte, error) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(v)
}

// decodeCBOR reads one item that fills raw: no duplicate keys, indefinite
// lengths, tags, or anything after it.
func decodeCBOR(raw []byte, v any, extra cbor.ExtraDecErrorCond) error {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   4,
		MaxMapPairs:       16,
		MaxArrayElements:  16,
		ExtraReturnErrors: extra,
	}.DecMode()
	if err != nil {
		return err
	}
	return mode.Unmarshal(raw, v)
}

// maxUnixSeconds is the last second of the year 9999. Times beyond it have no
// use and would overflow time.Time's arithmetic.
const maxUnixSeconds = 253402300799

// unixSeconds gives a time's wire form; parts of a second are dropped.
func unixSeconds(t time.Time) (uint64, error) {
	s := t.Unix()
	if s <= 0 || s > maxUnixSeconds {
		return 0, malformed("time is not set, or outside the years 1970 to 9999")
	}
	return uint64(s), nil
}

// fromUnixSeconds is the inverse, for s up to maxUnixSeconds.
func fromUnixSeconds(s uint64) time.Time { return time.Unix(int64(s), 0).UTC() }
