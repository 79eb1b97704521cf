package client_test

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("Homes", func() {
	It("are of the latest conversations, and bounded", func() {
		h := client.NewHomes()
		_, known := h.Get("0")
		Expect(known).To(BeFalse())
		for i := range 3 * client.MaxHomes {
			h.Set(fmt.Sprint(i), seal.KeyID{byte(i), byte(i >> 8)})
		}
		for i := 2 * client.MaxHomes; i < 3*client.MaxHomes; i++ {
			kid, known := h.Get(fmt.Sprint(i))
			Expect(known).To(BeTrue())
			Expect(kid).To(Equal(seal.KeyID{byte(i), byte(i >> 8)}))
		}
		_, known = h.Get("0")
		Expect(known).To(BeFalse())
	})

	It("move", func() {
		h := client.NewHomes()
		h.Set("c", seal.KeyID{1})
		h.Set("c", seal.KeyID{2})
		kid, _ := h.Get("c")
		Expect(kid).To(Equal(seal.KeyID{2}))
	})
})
