package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/client/kmskey"
	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

const tenantKey = "mrk-tenant"

// keyPolicy lets the tenant make data keys, and this test's image have them.
func keyPolicy(w *softkmstest.World, mayGenerate, image string) []byte {
	GinkgoHelper()
	out, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []map[string]any{
		{"Effect": "Allow", "Principal": map[string]any{"AWS": mayGenerate}, "Action": "kms:GenerateDataKey", "Resource": "*"},
		{
			"Effect": "Allow", "Principal": map[string]any{"AWS": w.Enclave.ARN}, "Action": "kms:Decrypt", "Resource": "*",
			"Condition": map[string]any{"StringEqualsIgnoreCase": map[string]any{"kms:RecipientAttestation:ImageSha384": image}},
		},
	}})
	Expect(err).NotTo(HaveOccurred())
	return out
}

// keyOf is the tenant's key as the client uses it: by the AWS SDK.
func keyOf(w *softkmstest.World) *kmskey.Key {
	GinkgoHelper()
	key, err := kmskey.New(w.Client(GinkgoTB(), w.Tenant), softkms.ARN(softkmstest.Region, tenantKey))
	Expect(err).NotTo(HaveOccurred())
	return key
}

// askingKMS has an enclave ask that KMS.
func askingKMS(w *softkmstest.World) func(*enclave.Config) {
	return func(config *enclave.Config) {
		k, err := kms.New(kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: w.Module, Roots: w.Roots})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(k.CloseIdleConnections)
		k.SetCredentials(kms.Credentials(w.Enclave.Credentials))
		config.KMS = k
	}
}

// fakeKeys are data keys of another region, or none.
type fakeKeys struct {
	region string
	err    error
}

func (f fakeKeys) Region() string { return f.region }

func (f fakeKeys) Generate(context.Context, map[string]string) (plaintext, ciphertext []byte, err error) {
	return make([]byte, 32), []byte("ciphertext"), f.err
}

var _ = Describe("With a KMS key of the tenant's own", func() {
	var (
		c *cluster
		e *edge
		w *softkmstest.World
	)
	BeforeEach(func() {
		c = newCluster()
		w = softkmstest.Start(GinkgoTB())
		_, err := w.CreateKey(tenantKey, keyPolicy(w, w.Tenant.ARN, w.PCRs[0].String()))
		Expect(err).NotTo(HaveOccurred())
		c.replace(c.newEnclave(askingKMS(w)))
		e = c.startEdge()
	})
	withKey := func(keys client.DataKeys) *tenant {
		GinkgoHelper()
		config := c.config(e)
		config.DataKeys = keys
		return c.tenant(config)
	}

	It("a request is opened by one data key, which the tenant has made and KMS released to the enclave", func(ctx SpecContext) {
		expectReply(withKey(keyOf(w)).ask(ctx))
		sent := e.requests(api.PathSealed)
		Expect(sent).To(HaveLen(1))
		tied := map[string]string{"mrgc:tenant": "acme", "mrgc:request-id": sent[0].header.Get(api.HeaderRequestID)}
		events := w.Events()
		Expect(events).To(HaveLen(2))
		Expect(events[0]).To(And(HaveField("Action", "kms:GenerateDataKey"), HaveField("Principal", w.Tenant.ARN), HaveField("Context", tied)))
		Expect(events[1]).To(And(HaveField("Action", "kms:Decrypt"), HaveField("Principal", w.Enclave.ARN), HaveField("Context", tied),
			HaveField("PCR0", w.PCRs[0].String()), HaveField("Error", "")))
	})

	It("each request has a data key of its own", func(ctx SpecContext) {
		t := withKey(keyOf(w))
		expectReply(t.ask(ctx))
		expectReply(t.ask(ctx))
		generated := 0
		for _, event := range w.Events() {
			if event.Action == "kms:GenerateDataKey" {
				generated++
			}
		}
		Expect(generated).To(Equal(2))
	})

	It("nothing is sent when KMS gives no data key", func(ctx SpecContext) {
		Expect(w.PutKeyPolicy(tenantKey, keyPolicy(w, "arn:aws:iam::111122223333:role/other", w.PCRs[0].String()))).To(Succeed())
		refused := refusal(withKey(keyOf(w)).ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).To(Equal("kms_failed"))
		Expect(refused.Message).To(ContainSubstring("AccessDeniedException"))
		Expect(e.requests(api.PathSealed)).To(BeEmpty())

		refused = refusal(withKey(fakeKeys{err: errors.New("no way to KMS")}).ask(ctx))
		Expect(refused.Message).To(ContainSubstring("no way to KMS"))
		Expect(e.requests(api.PathSealed)).To(BeEmpty())
	})

	It("the tenant is told when KMS does not trust the enclave, which the policy does", func(ctx SpecContext) {
		Expect(w.PutKeyPolicy(tenantKey, keyPolicy(w, w.Tenant.ARN, attest.ExtendedPCR([]byte("another")).String()))).To(Succeed())
		refused := refusal(withKey(keyOf(w)).ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusForbidden))
		Expect(refused.Code).To(Equal("kms_denied"))
	})

	It("requests stay in the key's region, unless it is a multi-region key", func(ctx SpecContext) {
		e.refuses(withKey(fakeKeys{region: "us-west-2"}).ask(ctx), `region "use1" is not accepted`)
		config := c.config(e)
		config.DataKeys, config.Policy.Regions = fakeKeys{region: "us-west-2"}, []string{"use1"}
		_, err := client.New(config)
		Expect(err).To(MatchError(ContainSubstring("multi-region key")))
		config.DataKeys = fakeKeys{region: "eu-west-1"}
		_, err = client.New(config)
		Expect(err).To(MatchError(ContainSubstring("where no cluster is")))
		Expect(keyOf(w).Region()).To(BeEmpty())
		single, err := kmskey.New(nil, "arn:aws:kms:us-east-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
		Expect(err).NotTo(HaveOccurred())
		Expect(single.Region()).To(Equal("us-east-2"))
	})

	DescribeTable("a key is named by its ARN", func(arn string) {
		_, err := kmskey.Open(context.Background(), arn)
		Expect(err).To(MatchError(ContainSubstring("want arn:aws:kms:")))
	},
		Entry("not by an id", "mrk-1234"),
		Entry("not by an alias", "arn:aws:kms:us-east-1:111122223333:alias/tenant"),
		Entry("not one of another service", "arn:aws:s3:us-east-1:111122223333:key/x"),
	)
})
