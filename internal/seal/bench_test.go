package seal_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"testing"

	"github.com/mrgc/mrgc/internal/seal"
)

func benchmarkRequest() (*seal.RecipientKey, seal.Request) {
	key, err := seal.NewRecipientKey(testClaims())
	if err != nil {
		panic(err)
	}
	req := testRequest()
	req.Payload.Body = bytes.Repeat([]byte("x"), 900) // 1 KiB when padded
	return key, req
}

func BenchmarkSeal(b *testing.B) {
	for _, n := range []int{1, 3} {
		var req seal.Request
		keys := make([]*seal.RecipientKey, n)
		for i := range keys {
			keys[i], req = benchmarkRequest()
		}
		b.Run(fmt.Sprintf("recipients=%d", n), func(b *testing.B) {
			to := recipients(keys...)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := seal.Seal(rand.Reader, req, to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	key, req := benchmarkRequest()
	sealed, err := seal.Seal(rand.Reader, req, recipients(key))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := open(key, sealed.Headers, sealed.Body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponseChunk(b *testing.B) {
	key, req := benchmarkRequest()
	sealed, err := seal.Seal(rand.Reader, req, recipients(key))
	if err != nil {
		b.Fatal(err)
	}
	opened, err := open(key, sealed.Headers, sealed.Body)
	if err != nil {
		b.Fatal(err)
	}
	token := []byte("data: {\"choices\":[{\"delta\":{\"content\":\" hello\"}}]}\n\n")
	b.Run("write", func(b *testing.B) {
		w, err := opened.Respond(rand.Reader, io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		if err := w.WriteHead(okHead()); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Write(token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write and read", func(b *testing.B) {
		wire := &bytes.Buffer{}
		w, err := opened.Respond(rand.Reader, wire)
		if err != nil {
			b.Fatal(err)
		}
		if err := w.WriteHead(okHead()); err != nil {
			b.Fatal(err)
		}
		r, buf := sealed.OpenResponse(wire), make([]byte, 512)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Write(token); err != nil {
				b.Fatal(err)
			}
			if _, err := r.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
