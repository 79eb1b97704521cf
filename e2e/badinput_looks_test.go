package e2e_test

import (
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
)

// describeLooks watches the sizes of what comes back under seal, through Envoy, the
// parent and the enclave.
func describeLooks(b *badInput) {
	It("that is refused under seal has an answer of the size of any short one", func(ctx SpecContext) {
		asked := b.chat("hello")
		unknown := append([]byte(`{"lora":"other",`), asked[1:]...)
		sizeOf := func(body []byte, status int, reads string) int {
			GinkgoHelper()
			sealed := b.seal(body, nil)
			l := b.letter(sealed)
			if reads != "" {
				l.header.Set(api.HeaderFrames, reads)
			}
			r := b.send(ctx, l)
			got, _ := r.opened(sealed)
			Expect(got).To(Equal(status))
			return len(r.body)
		}
		const around, prologue = 3 + 16, 1 + 8 + 32
		answered := sizeOf(asked, http.StatusOK, api.FramesRead)
		Expect(answered).To(Equal(prologue + 512 + 960 + 512 + 3*around))
		Expect(sizeOf(unknown, http.StatusBadRequest, api.FramesRead)).To(Equal(answered))
		Expect(sizeOf(asked, http.StatusOK, "")).To(Equal(prologue+3*512+3*around), "of before, which reads no other frames")
	})
}
