package open_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet/open"
)

func TestOpen(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "open")
}

var _ = Describe("Store", func() {
	It("opens a file", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "fleet.db")
		store, err := open.Store(ctx, "sqlite:"+path, nil)
		Expect(err).NotTo(HaveOccurred())
		snapshot, err := store.Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(snapshot.Instances).To(BeEmpty())
		Expect(store.Close()).To(Succeed())
		Expect(path).To(BeAnExistingFile())
	})

	It("opens a table, in the region and at the endpoint that are named, as the environment's identity", func(ctx SpecContext) {
		GinkgoT().Setenv("AWS_ACCESS_KEY_ID", "local")
		GinkgoT().Setenv("AWS_SECRET_ACCESS_KEY", "local")
		var operation, identity string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			operation, identity = r.Header.Get("X-Amz-Target"), r.Header.Get("Authorization")
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.Header().Set("X-Amz-Crc32", "2745614147") // of the body
			_, _ = w.Write([]byte("{}"))
		}))
		DeferCleanup(server.Close)
		store, err := open.Store(ctx, "dynamodb:gpu_instances?region=us-west-2&endpoint="+server.URL, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		_, err = store.Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(operation).To(HaveSuffix(".Scan"))
		Expect(identity).To(MatchRegexp("Credential=local/[0-9]+/us-west-2/dynamodb/"))
	})

	It("finds the table's region in the environment", func(ctx SpecContext) {
		GinkgoT().Setenv("AWS_REGION", "us-east-2")
		store, err := open.Store(ctx, "dynamodb:gpu_instances", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(store.Close()).To(Succeed())
	})

	DescribeTable("refuses", func(ctx SpecContext, address, why string) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).To(MatchError(ContainSubstring(why)))
		Expect(store).To(BeNil())
	},
		Entry("nothing", "", "want sqlite:PATH or dynamodb:TABLE"),
		Entry("no path", "sqlite:", "want sqlite:PATH"),
		Entry("a path alone", "/fleet.db", "want sqlite:PATH"),
		Entry("an unknown kind", "redis:fleet", "want sqlite:PATH"),
		Entry("a file that cannot be one", "sqlite:/nonexistent/fleet.db", "does not exist"),
		Entry("no table", "dynamodb:", "want sqlite:PATH or dynamodb:TABLE"),
		Entry("no table but a region", "dynamodb:?region=us-east-1", `table ""`),
		Entry("an unknown setting", "dynamodb:fleet?zone=a", `unknown setting "zone"`),
		Entry("a setting twice", "dynamodb:fleet?region=us-east-1&region=us-east-2", "region: want one value"),
		Entry("a setting without a value", "dynamodb:fleet?region=", "region: want one value"),
		Entry("no query", "dynamodb:fleet?region=%zz", "after the question mark"),
		Entry("http to another machine", "dynamodb:fleet?region=us-east-1&endpoint=http://192.0.2.1", "want https"),
	)
})
