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
