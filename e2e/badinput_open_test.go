package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// describeWhatDoesNotOpen breaks one thing of an envelope, or of the headers
// that it is bound to, at a time: all such requests must get one answer, to the
// byte.
func describeWhatDoesNotOpen(b *badInput) {
	DescribeTable("that does not open gets one and the same answer:", func(ctx SpecContext, spoil func(*letter)) {
		l := b.good()
		spoil(l)
		Expect(b.refused(ctx, l, http.StatusBadRequest, "cannot_open").all()).To(Equal(b.want))
	}, spoiledHeaders(), spoiledFields(), spoiledChunks(), Entry("another request's body", func(l *letter) {
		l.body = b.good().body
	}))

	It("that does not open gets that answer while the picker is silent, too", func(ctx SpecContext) {
		b.c.signal("router-", syscall.SIGSTOP)
		DeferCleanup(func() { b.c.signal("router-", syscall.SIGCONT) })
		code := func() string {
			l := b.good()
			l.header.Set(api.HeaderSize, "large") // which the picker alone explains
			r := b.send(ctx, l)
			return api.ParseError(r.status, r.body).Code
		}
		Eventually(ctx, code).Should(Equal("cannot_open"), "its threads stop one after the other")
		for _, spoil := range []func(*letter){
			func(l *letter) { l.header.Set(api.HeaderTenant, "two words") }, // no name, so Envoy goes by the token
			func(l *letter) { l.header.Set(api.HeaderAffinity, "c8") },
			func(l *letter) { l.header.Del(api.HeaderSize) },
			func(l *letter) { l.header.Set(api.HeaderRequestID, seal.RequestID{7}.String()) },
			func(l *letter) { l.header.Set(api.HeaderRecipients, l.header.Get(api.HeaderRecipients)[:16]) }, // forwarded, if need be
			func(l *letter) { l.body[atOperation] ^= 3 },
			func(l *letter) { l.body[len(l.body)-1] ^= 1 },
		} {
			l := b.good()
			spoil(l)
			Expect(b.refused(ctx, l, http.StatusBadRequest, "cannot_open").all()).To(Equal(b.want))
		}
		b.c.signal("router-", syscall.SIGCONT)
		Eventually(ctx, code).Should(Equal("invalid_header"))
	}, NodeTimeout(30*time.Second))

	It("is not seen by anybody when it is no tenant's, while the picker is silent, too", func(ctx SpecContext) {
		b.c.signal("router-", syscall.SIGSTOP)
		DeferCleanup(func() { b.c.signal("router-", syscall.SIGCONT) })
		for _, spoil := range []func(*letter){
			func(l *letter) { l.header.Del("Authorization") },
			func(l *letter) { l.header.Set("Authorization", l.header.Get("Authorization")+"x") },
			func(l *letter) { l.header.Set(api.HeaderTenant, "nobody") },
		} {
			l := b.good()
			spoil(l)
			b.refused(ctx, l, http.StatusUnauthorized, "invalid_api_key")
		}
	}, NodeTimeout(30*time.Second))
}

func spoiledHeaders() (entries []TableEntry) {
	header := func(what, name string, change func(string) string) {
		entries = append(entries, Entry(what, func(l *letter) { l.header.Set(name, change(l.header.Get(name))) }))
	}
	to := func(value string) func(string) string { return func(string) string { return value } }
	header("another affinity", api.HeaderAffinity, to("c8"))
	header("another size", api.HeaderSize, to("32768/1024"))
	header("another request id", api.HeaderRequestID, to(seal.RequestID{7}.String()))
	header("recipients in another order", api.HeaderRecipients, func(kids string) string {
		return kids[17:] + "," + kids[:16]
	})
	header("one recipient less", api.HeaderRecipients, func(kids string) string { return kids[:16] })
	header("one recipient more", api.HeaderRecipients, func(kids string) string { return kids + "," + seal.KeyID{7}.String() })
	header("one recipient replaced", api.HeaderRecipients, func(kids string) string { return kids[:17] + seal.KeyID{7}.String() })
	for _, name := range []string{api.HeaderAffinity, api.HeaderSize} {
		entries = append(entries, Entry("no "+name, func(l *letter) { l.header.Del(name) }))
	}
	return entries
}

func spoiledFields() (entries []TableEntry) {
	flip := func(what string, at int, bit byte) {
		entries = append(entries, Entry(what+" flipped", func(l *letter) { l.body[at] ^= bit }))
	}
	flip("version", atVersion, 1)
	flip("suite", atSuite, 1)
	flip("operation", atOperation, 3) // to the other one that is known
	flip("request id", atRequestID, 1)
	flip("expiry", atExpiryLowByte, 1) // by a second
	flip("recipients' length", atRecipientsLength, 1)
	flip("number of recipients", atRecipientCount, 1)
	for i, which := range []string{"first", "second"} {
		at := atStanza + i*stanzaBytes
		flip(which+" key id", at, 1)
		flip(which+" type", at+inStanzaType, 2)
		flip(which+" length of enc", at+inStanzaEncLength, 1)
		flip(which+" enc", at+inStanzaEnc, 1)
		flip(which+" length of the wrapped DEK", at+inStanzaDEKLength, 1)
		flip(which+" wrapped DEK", at+inStanzaDEK, 1)
	}
	flip("commitment", atStanza+2*stanzaBytes, 1)
	for what, at := range map[string]int{
		"nothing": 0, "a byte": 1, "half a prologue": atStanza, "one recipient": atStanza + stanzaBytes,
		"a prologue": atStanza + 2*stanzaBytes, "no chunk": atStanza + 2*stanzaBytes + commitmentBytes,
	} {
		entries = append(entries, Entry(what+" of it", func(l *letter) { l.body, l.length = l.body[:at], int64(at) }))
	}
	return entries
}

func spoiledChunks() (entries []TableEntry) {
	change := func(what string, change func([][]byte) [][]byte) {
		entries = append(entries, Entry(what, func(l *letter) { l.rechunk(change) }))
	}
	for i := range 4 {
		flip := func(what string, at func(chunk []byte) *byte) {
			change(fmt.Sprintf("chunk %d with its %s flipped", i, what), func(chunks [][]byte) [][]byte {
				Expect(chunks).To(HaveLen(4))
				*at(chunks[i]) ^= 1
				return chunks
			})
		}
		flip("final flag", func(chunk []byte) *byte { return &chunk[0] })
		flip("length", func(chunk []byte) *byte { return &chunk[2] })
		flip("first byte", func(chunk []byte) *byte { return &chunk[chunkHeaderBytes] })
		flip("last byte", func(chunk []byte) *byte { return &chunk[len(chunk)-1] })
		change(fmt.Sprintf("chunk %d dropped", i), func(chunks [][]byte) [][]byte { return slices.Delete(chunks, i, i+1) })
		change(fmt.Sprintf("chunk %d twice", i), func(chunks [][]byte) [][]byte { return slices.Insert(chunks, i, chunks[i]) })
		change(fmt.Sprintf("chunk %d cut short", i), func(chunks [][]byte) [][]byte {
			chunks[i] = chunks[i][:len(chunks[i])/2]
			return chunks[:i+1]
		})
	}
	change("chunks in another order", func(chunks [][]byte) [][]byte {
		chunks[1], chunks[2] = chunks[2], chunks[1]
		return chunks
	})
	return entries
}
