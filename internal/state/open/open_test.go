package open_test

import (
	"path/filepath"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

func TestOpen(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state/open")
}

var _ = Describe("Store", func() {
	It("opens a file", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "state.db")
		store, err := open.Store(ctx, "sqlite:"+path, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		_, err = store.Get(ctx, schema.RoutingState, state.Key{Partition: "use1"})
		Expect(err).To(MatchError(state.ErrNotFound))
		Expect(path).To(BeAnExistingFile())
	})

	It("opens tables, without a prefix as well", func(ctx SpecContext) {
		GinkgoT().Setenv("AWS_REGION", "us-east-2")
		for _, address := range []string{"dynamodb:", "dynamodb:staging-", "dynamodb:?region=us-west-2"} {
			store, err := open.Store(ctx, address, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(store.Close()).To(Succeed())
		}
	})

	It("reads all that an address says of tables", func() {
		cfg, err := open.Tables("dynamodb:p-?region=us-west-2&endpoint=http://127.0.0.1:8000&strong-region=us-east-1")
		Expect(err).NotTo(HaveOccurred())
		Expect(cfg.Prefix).To(Equal("p-"))
		Expect(cfg.Region).To(Equal("us-west-2"))
		Expect(cfg.Endpoint).To(Equal("http://127.0.0.1:8000"))
		Expect(cfg.StrongRegion).To(Equal("us-east-1"))
	})

	DescribeTable("refuses", func(ctx SpecContext, address, why string) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).To(MatchError(ContainSubstring(why)))
		Expect(store).To(BeNil())
	},
		Entry("nothing", "", "want sqlite:PATH or dynamodb:[PREFIX]"),
		Entry("a kind alone", "dynamodb", "want sqlite:PATH"),
		Entry("no path", "sqlite:", "want sqlite:PATH"),
		Entry("an unknown kind", "redis:x", "want sqlite:PATH"),
		Entry("an unknown setting", "dynamodb:?zone=a", `unknown setting "zone"`),
		Entry("a prefix that no table may have", "dynamodb:a/?region=us-east-1", "want 3 to 255"),
		Entry("a strong region on AWS", "dynamodb:?region=us-east-1&strong-region=us-east-1", "for emulators"),
		Entry("http to another machine", "dynamodb:?region=us-east-1&endpoint=http://192.0.2.1", "want https"),
	)

	It("knows no tables in a file", func() {
		_, err := open.Tables("sqlite:x")
		Expect(err).To(MatchError(ContainSubstring("only DynamoDB has tables to make")))
	})
})
