package client_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

// sharedTable is a fleet's table in memory.
type sharedTable struct {
	mu    sync.Mutex
	seeds map[seal.FleetEpoch][]byte // guarded by mu
	runs  map[seal.RequestID]bool    // guarded by mu
}

func (t *sharedTable) Seed(_ context.Context, of seal.FleetEpoch) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seeds[of], nil
}

func (t *sharedTable) PutSeed(_ context.Context, of seal.FleetEpoch, ciphertext []byte, _ time.Time) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seeds[of] != nil {
		return false, nil
	}
	t.seeds[of] = ciphertext
	return true, nil
}

func (t *sharedTable) Record(_ context.Context, _ seal.KeyID, request seal.RequestID, _ time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.runs[request] {
		return seal.ErrReplayed
	}
	t.runs[request] = true
	return nil
}

func (t *sharedTable) SetCredentials(awscall.Credentials) {}

// ofFleet has an enclave hold the fleet's keys. Newer enclaves hold the same.
func ofFleet(w *softkmstest.World, table *sharedTable) func(*enclave.Config) {
	return func(config *enclave.Config) {
		askingKMS(w)(config)
		config.Fleet = &enclave.Fleet{Name: "prod", KMS: softkms.ARN(softkmstest.Region, "mrk-fleet"), Table: table}
	}
}

// run has an enclave look after its keys until the test is over, and waits until it
// has one of the fleet.
func run(e *enclave.Enclave) *enclave.Enclave {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- e.Serve(ctx, listener) }()
	DeferCleanup(func() {
		stop()
		Eventually(served).Should(Receive(BeNil()))
	})
	Eventually(func() []api.Recipient { return recipientsOf(e) }).WithTimeout(10 * time.Second).Should(HaveLen(2))
	return e
}

func typeOf(kid string, offered []api.Recipient) string {
	for _, o := range offered {
		if recipient, err := seal.ParseRecipient(o.Claims); err == nil && recipient.KeyID().String() == kid {
			return recipient.Claims().Type.String()
		}
	}
	return "unknown"
}

var _ = Describe("A fleet's key", func() {
	var (
		c *cluster
		e *edge
		// everything that was ever offered
		offered []api.Recipient
		newOne  func() *enclave.Enclave
	)
	BeforeEach(func() {
		c = newCluster()
		w := softkmstest.Start(GinkgoTB())
		table := &sharedTable{seeds: map[seal.FleetEpoch][]byte{}, runs: map[seal.RequestID]bool{}}
		policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []map[string]any{{
			"Effect": "Allow", "Principal": map[string]any{"AWS": w.Enclave.ARN}, "Action": []string{"kms:GenerateDataKey", "kms:Decrypt"}, "Resource": "*",
		}}})
		Expect(err).NotTo(HaveOccurred())
		_, err = w.CreateKey("mrk-fleet", policy)
		Expect(err).NotTo(HaveOccurred())
		newOne = func() *enclave.Enclave {
			GinkgoHelper()
			one := run(c.newEnclave(ofFleet(w, table)))
			offered = append(offered, recipientsOf(one)...)
			return one
		}
		offered = nil
		c.replace(newOne())
		e = c.startEdge()
	})

	accepting := func(types ...string) *tenant {
		GinkgoHelper()
		config := c.config(e)
		config.Policy.RecipientTypes = types
		return c.tenant(config)
	}
	// sealedTo are the types of what requests were sealed to, in order.
	sealedTo := func() (types []string) {
		for _, sealed := range e.requests(api.PathSealed) {
			types = append(types, typeOf(sealed.header.Get(api.HeaderRecipients), offered))
		}
		return types
	}

	It("is not used while the enclave that is known is there", func(ctx SpecContext) {
		expectReply(accepting("enclave", "fleet").ask(ctx))
		Expect(sealedTo()).To(Equal([]string{"enclave"}))
	})

	It("is used when none is there any more, and nobody can say who is", func(ctx SpecContext) {
		t := accepting("enclave", "fleet")
		expectReply(t.ask(ctx))
		c.replace(newOne())
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
			api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "none").Write(w)
		})
		expectReply(t.ask(ctx))
		Expect(sealedTo()).To(Equal([]string{"enclave", "enclave", "fleet"}))
	})

	It("is used when the enclaves that are listed change faster than requests reach them", func(ctx SpecContext) {
		t := accepting("enclave", "fleet")
		expectReply(t.ask(ctx))
		c.replace(newOne())
		gone := recipientsOf(c.newEnclave())
		offered = append(offered, gone...)
		fleetKey := recipientsOf(c.present()[0])[1]
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, append(gone, fleetKey)) })
		expectReply(t.ask(ctx))
		Expect(sealedTo()).To(Equal([]string{"enclave", "enclave", "enclave", "fleet"}))
	})

	It("is refused by default", func(ctx SpecContext) {
		t := accepting()
		expectReply(t.ask(ctx))
		c.replace(newOne())
		e.on(api.PathKeys, func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, recipientsOf(c.present()[0])[1:]) })
		Expect(refusal(t.ask(ctx)).Code).To(Equal("no_trusted_recipient"))
		Expect(sealedTo()).To(Equal([]string{"enclave", "enclave"}))
	})

	It("is all that is used by who accepts nothing else, and its receipt says so", func(ctx SpecContext) {
		config := c.config(e)
		config.Policy.RecipientTypes = []string{"fleet"}
		var kept []client.Receipt
		config.Receipts = func(_ string, r client.Receipt) { kept = append(kept, r) }
		t := c.tenant(config)
		expectReply(t.ask(ctx))
		expectReply(t.ask(ctx))
		Expect(sealedTo()).To(Equal([]string{"fleet", "fleet"}))
		Expect(e.requests(api.PathKeys)).To(HaveLen(1))
		Expect(kept).To(HaveLen(2))
		stated, err := kept[0].Verify(config.Policy)
		Expect(err).NotTo(HaveOccurred())
		Expect(stated.Claims.Type).To(Equal(seal.TypeFleet))
		_, err = kept[0].Verify(c.config(e).Policy)
		Expect(err).To(MatchError(ContainSubstring("type fleet are not accepted")))
	})

	It("is of no type that is not known", func() {
		config := c.config(e)
		config.Policy.RecipientTypes = []string{"enclave", "kms"}
		_, err := client.New(config)
		Expect(err).To(MatchError(ContainSubstring(`type "kms"`)))
	})
})
