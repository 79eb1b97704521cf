package dynamodb_test

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

var _ = Describe("Opening", func() {
	DescribeTable("refuses",
		func(ctx SpecContext, change func(*dynamodb.Config), why string) {
			GinkgoT().Setenv("AWS_REGION", "")
			GinkgoT().Setenv("AWS_DEFAULT_REGION", "")
			GinkgoT().Setenv("AWS_CONFIG_FILE", "/nonexistent")
			cfg := config("http://127.0.0.1:1", "gpu_instances")
			change(&cfg)
			_, err := dynamodb.Open(ctx, cfg)
			Expect(err).To(MatchError(ContainSubstring(why)))
		},
		Entry("no table", func(cfg *dynamodb.Config) { cfg.Table = "" }, `DynamoDB table "": want 3 to 255`),
		Entry("a table with a slash", func(cfg *dynamodb.Config) { cfg.Table = "gpu/instances" }, "want 3 to 255"),
		Entry("no region", func(cfg *dynamodb.Config) { cfg.Region = "" }, "set AWS_REGION"),
		Entry("an endpoint without a scheme", func(cfg *dynamodb.Config) { cfg.Endpoint = "dynamodb.example" }, "want https://HOST"),
		Entry("an endpoint without a host", func(cfg *dynamodb.Config) { cfg.Endpoint = "https://" }, "want https://HOST"),
		Entry("http to another machine", func(cfg *dynamodb.Config) { cfg.Endpoint = "http://192.0.2.1" }, "want https"),
		Entry("http to a name", func(cfg *dynamodb.Config) { cfg.Endpoint = "http://localhost.example" }, "want https"),
	)

	It("makes no request", func(ctx SpecContext) {
		requests, cfg := serve(func(http.ResponseWriter, *http.Request) {})
		store := open(ctx, cfg)
		Expect(store.Close()).To(Succeed())
		Expect(requests.Load()).To(BeZero())
	})
})

var _ = Describe("A call", func() {
	It("that reads is strongly consistent, and goes on where a page ended", func(ctx SpecContext) {
		var bodies []string
		_, cfg := serve(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			bodies = append(bodies, string(body))
			if len(bodies) == 1 {
				answer(w, http.StatusOK, `{"Items":[],"LastEvaluatedKey":{"instance_id":{"S":"use1-7"}}}`)
			} else {
				answer(w, http.StatusOK, `{"Items":[]}`)
			}
		})
		Expect(storetest.Instances(ctx, open(ctx, cfg))).To(BeEmpty())
		Expect(bodies).To(HaveExactElements(
			MatchJSON(`{"TableName":"gpu_instances","ConsistentRead":true}`),
			MatchJSON(`{"TableName":"gpu_instances","ConsistentRead":true,"ExclusiveStartKey":{"instance_id":{"S":"use1-7"}}}`)))
	})

	It("is tried three times when the table is throttled, and then says so", func(ctx SpecContext) {
		requests, cfg := serve(func(w http.ResponseWriter, _ *http.Request) { refuse(w, "ThrottlingException") })
		Expect(open(ctx, cfg).Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(MatchError(And(
			HavePrefix("heartbeat of instance a: DynamoDB table gpu_instances: throttled"), ContainSubstring("ThrottlingException"))))
		Expect(requests.Load()).To(Equal(int64(3)))
	})

	It("goes through when the throttling ends", func(ctx SpecContext) {
		var before atomic.Int64
		requests, cfg := serve(func(w http.ResponseWriter, _ *http.Request) {
			if before.Add(1) < 3 {
				refuse(w, "ProvisionedThroughputExceededException")
			} else {
				answer(w, http.StatusOK, "{}")
			}
		})
		Expect(open(ctx, cfg).Heartbeat(ctx, fleet.Heartbeat{ID: "a"})).To(Succeed())
		Expect(requests.Load()).To(Equal(int64(3)))
	})

	It("is not tried again when AWS refuses it", func(ctx SpecContext) {
		requests, cfg := serve(func(w http.ResponseWriter, _ *http.Request) { refuse(w, "AccessDeniedException") })
		Expect(open(ctx, cfg).Deregister(ctx, "a")).To(MatchError(ContainSubstring("AccessDeniedException")))
		Expect(requests.Load()).To(Equal(int64(1)))
	})

	It("waits no longer than its context", func(ctx SpecContext) {
		_, cfg := serve(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		err := open(ctx, cfg).Register(short, instance("a"))
		Expect(err).To(MatchError(context.DeadlineExceeded))
		Expect(err).To(MatchError(HavePrefix("register instance a: DynamoDB table gpu_instances: timed out")))
	}, SpecTimeout(time.Second))

	It("ends by itself when nobody answers", func(ctx SpecContext) {
		requests, cfg := serve(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		_, err := open(ctx, cfg).Snapshot(ctx)
		Expect(err).To(MatchError(And(ContainSubstring("read instances: "), ContainSubstring("timed out"))))
		Expect(requests.Load()).To(Equal(int64(3)))
	}, SpecTimeout(20*time.Second))

	It("says that nobody is there", func(ctx SpecContext) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		Expect(listener.Close()).To(Succeed())
		store := open(ctx, config("http://"+listener.Addr().String(), "gpu_instances"))
		Expect(store.SetDraining(ctx, "a", true)).To(MatchError(
			HavePrefix("drain instance a: DynamoDB table gpu_instances: cannot be reached")))
	})
})

// serve answers in the place of DynamoDB, and counts the requests.
func serve(handler http.HandlerFunc) (*atomic.Int64, dynamodb.Config) {
	requests := &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		body, _ := io.ReadAll(r.Body) // all, so that the end of the connection is noticed
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler(w, r)
	}))
	DeferCleanup(server.Close)
	return requests, config(server.URL, "gpu_instances")
}

func refuse(w http.ResponseWriter, code string) {
	answer(w, http.StatusBadRequest, `{"__type":"com.amazonaws.dynamodb.v20120810#`+code+`","message":"not now"}`)
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(body))), 10))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}
