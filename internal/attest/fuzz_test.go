package attest_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/attest"
)

// FuzzVerify checks that nothing but the one valid document passes, with its
// tag or without, and that nothing panics. The document is a stored one because
// each of the fuzzer's processes would forge another.
func FuzzVerify(f *testing.F) {
	valid := vector("aws-attestation-2023.cbor")
	policy, ownTime := realPolicy()
	f.Add(valid)
	f.Add(append([]byte{0xd2}, valid...))
	for _, name := range []string{"aws-attestation-debug-2023.cbor", "qemu-unsigned-attestation.cbor"} {
		f.Add(vector(name))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := attest.Verify(raw, policy, attest.Expected{}, ownTime)
		if (doc == nil) == (err == nil) {
			t.Fatalf("document %v and error %v", doc, err)
		}
		if err == nil && !bytes.Equal(bytes.TrimPrefix(raw, []byte{0xd2}), valid) {
			t.Fatalf("accepted %x", raw)
		}
	})
}

// FuzzPayload checks what the signature is over, which is read before that verifies: in
// a whole document a changed length makes nearly all of it unreadable. Nothing panics,
// what is accepted keeps the limits, and no payload is both an enclave's and a host's.
func FuzzPayload(f *testing.F) {
	for _, name := range []string{"aws-attestation-2023.cbor", "aws-attestation-debug-2023.cbor", "aws-nitrotpm-2026.cbor"} {
		payload, err := attest.PayloadOf(vector(name))
		check(err)
		f.Add(payload)
		f.Add(append(bytes.Clone(payload), 0))
		f.Add(bytes.Replace(payload, []byte("nitrotpm_pcrs"), []byte("pcrs"), 1))
		f.Add(bytes.Replace(payload, []byte("\x69user_data"), []byte("\x69User_data"), 1))
		f.Add(bytes.Replace(payload, []byte("\x65nonce"), []byte("\x66digest"), 1))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		enclave, enclaveErr := attest.ParsePayload(payload, false)
		host, hostErr := attest.ParsePayload(payload, true)
		if enclaveErr == nil && hostErr == nil {
			t.Fatal("it passes as an enclave's and as a host's")
		}
		for _, doc := range []*attest.Document{enclave, host} {
			if doc == nil {
				continue
			}
			if len(doc.PCRs) == 0 || doc.ModuleID == "" || doc.Digest != "SHA384" || len(doc.UserData) > 512 || len(doc.Nonce) > 512 || len(doc.PublicKey) > 1024 {
				t.Fatalf("accepted %+v", doc)
			}
			for i, v := range doc.PCRs {
				if i < 0 || i > 31 || len(v) != 48 {
					t.Fatalf("accepted PCR%d of %d bytes", i, len(v))
				}
			}
		}
	})
}

// FuzzParseReleases checks that what is accepted means the same when it is
// written and read again.
func FuzzParseReleases(f *testing.F) {
	seed, err := json.Marshal([]attest.Release{release(1), release(2)})
	check(err)
	f.Add(seed)
	f.Add([]byte(`[{"version":1,"name":"a","pcrs":{"+0":"ab"}}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := attest.ParseReleases(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := attest.ParseReleases(again)
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	raw, policy := newForge().document()
	tampered := bytes.Clone(raw)
	tampered[len(tampered)-1] ^= 1
	b.Run("valid", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := attest.Verify(raw, policy, expected(), signedAt.Add(time.Second)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tampered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := attest.Verify(tampered, policy, expected(), signedAt); err == nil {
				b.Fatal("accepted")
			}
		}
	})
}
