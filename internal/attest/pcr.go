package attest

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
)

// pcrSize is the size of a platform configuration register in bytes (SHA-384).
const pcrSize = sha512.Size384

// PCRs are platform configuration registers by index, 48 bytes each. Of an enclave:
//
//	0  the enclave image: kernel, command line and ramdisks
//	1  kernel, command line and boot ramdisk
//	2  the application's ramdisks
//	3  the role of the parent instance, hence its account
//	4  the id of the parent instance
//	8  the certificate that signed the image
type PCRs map[int]HexBytes

// validate checks registers that somebody pins.
func (pinned PCRs) validate() error {
	for i, v := range pinned {
		if i < 0 || i >= maxPCRs {
			return fmt.Errorf("PCR%d: the index is not 0 to %d", i, maxPCRs-1)
		}
		if len(v) != pcrSize {
			return fmt.Errorf("PCR%d has %d bytes, not %d", i, len(v), pcrSize)
		}
	}
	return nil
}

// matches says whether every register that is pinned has its value.
func (pinned PCRs) matches(pcrs PCRs) bool {
	for i, v := range pinned {
		if !bytes.Equal(v, pcrs[i]) {
			return false
		}
	}
	return true
}

// HexBytes are bytes that people see, and JSON holds, in lower-case hex.
type HexBytes []byte

// String returns the bytes in lower-case hex.
func (h HexBytes) String() string { return hex.EncodeToString(h) }

// MarshalText implements [encoding.TextMarshaler].
func (h HexBytes) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, h), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *HexBytes) UnmarshalText(text []byte) error {
	b, err := hex.AppendDecode(nil, text)
	if err != nil {
		return err
	}
	*h = b
	return nil
}

// ExtendedPCR is what a register that was zero holds after one extension with
// data: SHA-384(48 zero bytes ‖ data). The registers of an enclave image are
// ExtendedPCR(SHA-384(contents)); PCR3 is ExtendedPCR(role ARN) and PCR4
// ExtendedPCR(instance id), both without a hash between.
func ExtendedPCR(data []byte) HexBytes {
	h := sha512.New384()
	h.Write(make([]byte, pcrSize))
	h.Write(data)
	return h.Sum(nil)
}

// imagePCRs counts the registers that measure the image: PCR0, PCR1, PCR2.
const imagePCRs = 3

// checkImage refuses registers that measure no image. They are zero in debug
// mode, in which the parent instance reads the enclave's console.
func checkImage(pcrs PCRs) error {
	for i := range imagePCRs {
		v, ok := pcrs[i]
		if !ok {
			return fmt.Errorf("PCR%d is missing", i)
		}
		if bytes.Equal(v, make([]byte, len(v))) {
			return fmt.Errorf("PCR%d is all zero, as in debug mode; start the enclave without --debug-mode", i)
		}
	}
	return nil
}
