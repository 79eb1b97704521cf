package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

func fleetSeed() []byte {
	seed := make([]byte, 32)
	for i := range seed {
		seed[i] = byte(i)
	}
	return seed
}

func fleetEpoch() seal.FleetEpoch {
	return seal.FleetEpoch{Fleet: "prod", Region: "use1", Number: 41394}
}

func fleetClaims() seal.Claims {
	claims := testClaims()
	claims.Mode = seal.ModeNitro
	start := time.Unix(int64(fleetEpoch().Number)*43200, 0)
	claims.NotBefore, claims.NotAfter = start.Add(-time.Minute), start.Add(24*time.Hour-time.Second)
	return claims
}

func newFleetKey() (*seal.RecipientKey, ed25519.PrivateKey) {
	GinkgoHelper()
	key, receipts, err := seal.NewFleetKey(fleetSeed(), fleetEpoch(), fleetClaims())
	Expect(err).NotTo(HaveOccurred())
	return key, receipts
}

var _ = Describe("A fleet's key", func() {
	It("is that of the test vector, whose keys an implementation in another language has derived", func() {
		raw, err := os.ReadFile(filepath.Join("testdata", "fleet.json"))
		Expect(err).NotTo(HaveOccurred())
		var v struct {
			Seed        hexBytes `json:"seed"`
			Fleet       string   `json:"fleet"`
			Region      string   `json:"region"`
			Epoch       uint64   `json:"epoch"`
			Model       string   `json:"model"`
			Manifest    hexBytes `json:"manifest"`
			Mode        string   `json:"mode"`
			NotBefore   int64    `json:"not_before"`
			NotAfter    int64    `json:"not_after"`
			PrivateKey  hexBytes `json:"private_key"`
			ReceiptSeed hexBytes `json:"receipt_seed"`
			Claims      hexBytes `json:"claims"`
			KeyID       string   `json:"key_id"`
		}
		Expect(json.Unmarshal(raw, &v)).To(Succeed())
		key, receipts, err := seal.NewFleetKey(v.Seed, seal.FleetEpoch{Fleet: v.Fleet, Region: v.Region, Number: v.Epoch}, seal.Claims{
			Model: v.Model, ManifestSHA256: [32]byte(v.Manifest), Mode: v.Mode, NotBefore: time.Unix(v.NotBefore, 0), NotAfter: time.Unix(v.NotAfter, 0),
		})
		Expect(err).NotTo(HaveOccurred())
		twin, err := seal.RecipientKeyFromPrivate(v.PrivateKey, fleetClaims())
		Expect(err).NotTo(HaveOccurred())
		Expect(key.Claims().PublicKey).To(Equal(twin.Claims().PublicKey))
		Expect(receipts.Seed()).To(BeEquivalentTo(v.ReceiptSeed))
		Expect(key.RawClaims()).To(BeEquivalentTo(v.Claims))
		Expect(key.KeyID().String()).To(Equal(v.KeyID))
	})

	It("is the same for all who hold the seed, and says of what type it is", func() {
		one, receipts := newFleetKey()
		other, _ := newFleetKey()
		Expect(other.RawClaims()).To(Equal(one.RawClaims()))
		claims := one.Claims()
		Expect(claims.Type).To(Equal(seal.TypeFleet))
		Expect(claims.Type.String()).To(Equal("fleet"))
		Expect(claims.Region).To(Equal("use1"))
		Expect(claims.ReceiptKey).To(BeEquivalentTo(receipts.Public()))
		Expect(mustOpen(other, mustSeal(testRequest(), one)).Payload).To(Equal(testRequest().Payload))
	})

	DescribeTable("is another one for another", func(change func(*seal.FleetEpoch, *seal.Claims, []byte)) {
		one, oneReceipts := newFleetKey()
		epoch, claims, seed := fleetEpoch(), fleetClaims(), fleetSeed()
		change(&epoch, &claims, seed)
		other, receipts, err := seal.NewFleetKey(seed, epoch, claims)
		Expect(err).NotTo(HaveOccurred())
		Expect(other.Claims().PublicKey).NotTo(Equal(one.Claims().PublicKey))
		Expect(receipts).NotTo(Equal(oneReceipts))
	},
		Entry("seed", func(_ *seal.FleetEpoch, _ *seal.Claims, seed []byte) { seed[31] ^= 1 }),
		Entry("fleet", func(e *seal.FleetEpoch, _ *seal.Claims, _ []byte) { e.Fleet = "test" }),
		Entry("region", func(e *seal.FleetEpoch, _ *seal.Claims, _ []byte) { e.Region = "use2" }),
		Entry("epoch", func(e *seal.FleetEpoch, _ *seal.Claims, _ []byte) { e.Number++ }),
		Entry("model", func(_ *seal.FleetEpoch, c *seal.Claims, _ []byte) { c.Model = "other" }),
		Entry("manifest", func(_ *seal.FleetEpoch, c *seal.Claims, _ []byte) { c.ManifestSHA256[0] ^= 1 }),
		Entry("mode", func(_ *seal.FleetEpoch, c *seal.Claims, _ []byte) { c.Mode = seal.ModeProcess }),
		Entry("beginning", func(_ *seal.FleetEpoch, c *seal.Claims, _ []byte) { c.NotBefore = c.NotBefore.Add(time.Second) }),
		Entry("end", func(_ *seal.FleetEpoch, c *seal.Claims, _ []byte) { c.NotAfter = c.NotAfter.Add(time.Second) }),
	)

	It("is not made of a seed of another length", func() {
		for _, n := range []int{0, 16, 31, 33} {
			_, _, err := seal.NewFleetKey(make([]byte, n), fleetEpoch(), fleetClaims())
			Expect(err).To(HaveOccurred())
		}
	})

	It("has seeds in a context that names fleet, region and epoch", func() {
		Expect(fleetEpoch().EncryptionContext()).To(Equal(map[string]string{"mrgc:fleet": "prod", "mrgc:region": "use1", "mrgc:epoch": "41394"}))
	})

	It("opens beside enclaves' own keys", func() {
		fleet, _ := newFleetKey()
		own := newKey()
		sealed := mustSeal(testRequest(), own, fleet)
		for _, key := range []*seal.RecipientKey{own, fleet} {
			Expect(mustOpen(key, sealed).KeyID).To(Equal(key.KeyID()))
		}
	})

	It("opens nothing that says it is sealed to a key of another type, nor does an enclave's own", func() {
		fleet, _ := newFleetKey()
		const kindAt = seal.PrologueHeadSize + 1 + 8
		for key, other := range map[*seal.RecipientKey]byte{fleet: 1, newKey(): 2} {
			sealed := mustSeal(testRequest(), key)
			body := bytes.Clone(sealed.Body)
			Expect(body[kindAt]).To(BeEquivalentTo(key.Claims().Type))
			body[kindAt] = other
			_, err := open(key, sealed.Headers, body)
			Expect(err).To(MatchError(seal.ErrMalformed))
			Expect(err).To(MatchError(ContainSubstring("to a key of type " + key.Claims().Type.String())))
		}
	})
})
