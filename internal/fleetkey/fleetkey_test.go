package fleetkey_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleetkey"
	"github.com/mrgc/mrgc/internal/fleetkey/fleetkeytest"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/state/schema"
)

func TestFleetKey(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/fleetkey")
}

func epoch(n uint64) seal.FleetEpoch {
	return seal.FleetEpoch{Fleet: "prod", Region: "use1", Number: n}
}

var _ = Describe("The fleet's table", Ordered, func() {
	var w *fleetkeytest.World
	BeforeAll(func() { w = fleetkeytest.Start(GinkgoTB()) })

	row := func(ctx context.Context, id string) map[string]types.AttributeValue {
		GinkgoHelper()
		out, err := w.GetItem(ctx, &sdk.GetItemInput{
			TableName: &schema.FleetKeys.Name, Key: map[string]types.AttributeValue{"id": &types.AttributeValueMemberS{Value: id}},
		})
		Expect(err).NotTo(HaveOccurred())
		return out.Item
	}

	It("keeps the first seed of an epoch, and gives it to all", func(ctx SpecContext) {
		one, other := w.Table(GinkgoTB()), w.Table(GinkgoTB())
		Expect(one.Seed(ctx, epoch(1))).To(BeNil())
		until := time.Now().Add(time.Hour)
		Expect(one.PutSeed(ctx, epoch(1), []byte("first"), until)).To(BeTrue())
		Expect(other.PutSeed(ctx, epoch(1), []byte("second"), until)).To(BeFalse())
		Expect(other.Seed(ctx, epoch(1))).To(BeEquivalentTo("first"))
		for _, another := range []seal.FleetEpoch{epoch(2), {Fleet: "test", Region: "use1", Number: 1}, {Fleet: "prod", Region: "use2", Number: 1}} {
			Expect(one.Seed(ctx, another)).To(BeNil())
		}
		Expect(row(ctx, "seed/prod/use1/1")).To(HaveKeyWithValue(schema.TTL, &types.AttributeValueMemberN{Value: strconv.FormatInt(until.Add(24*time.Hour).Unix(), 10)}))
	})

	It("records a request once for each key, whoever asks, and lets DynamoDB forget it after its expiry", func(ctx SpecContext) {
		one, other := w.Table(GinkgoTB()), w.Table(GinkgoTB())
		expiry := time.Now().Add(time.Minute)
		key, request := seal.KeyID{1}, seal.RequestID{2}
		Expect(one.Record(ctx, key, request, expiry)).To(Succeed())
		Expect(other.Record(ctx, key, request, expiry)).To(MatchError(seal.ErrReplayed))
		Expect(one.Record(ctx, key, request, expiry)).To(MatchError(seal.ErrReplayed))
		Expect(other.Record(ctx, seal.KeyID{2}, request, expiry)).To(Succeed())
		Expect(other.Record(ctx, key, seal.RequestID{3}, expiry)).To(Succeed())
		Expect(row(ctx, "run/"+key.String()+"/"+request.String())).To(HaveKeyWithValue(schema.TTL,
			&types.AttributeValueMemberN{Value: strconv.FormatInt(expiry.Add(time.Hour).Unix(), 10)}))
	})

	It("lets one of many at once win", func(ctx SpecContext) {
		table := w.Table(GinkgoTB())
		var wins, replays int
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 12 {
			all.Go(func() {
				defer GinkgoRecover()
				err := table.Record(ctx, seal.KeyID{9}, seal.RequestID{9}, time.Now().Add(time.Minute))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					wins++
				} else {
					Expect(err).To(MatchError(seal.ErrReplayed))
					replays++
				}
			})
		}
		all.Wait()
		Expect([]int{wins, replays}).To(Equal([]int{1, 11}))
	})

	It("is not taken for empty when it does not answer", func(ctx SpecContext) {
		table := w.Table(GinkgoTB())
		w.SetAway(true)
		defer w.SetAway(false)
		Expect(table.Record(ctx, seal.KeyID{3}, seal.RequestID{3}, time.Now().Add(time.Minute))).To(MatchError(fleetkey.ErrUnavailable))
		_, err := table.Seed(ctx, epoch(1))
		Expect(err).To(MatchError(fleetkey.ErrUnavailable))
		_, err = table.PutSeed(ctx, epoch(3), []byte("x"), time.Now())
		Expect(err).To(MatchError(fleetkey.ErrUnavailable))
	})

	It("is not there by another name, nor for whoever Amazon's roots do not certify", func(ctx SpecContext) {
		elsewhere, err := fleetkey.Open(fleetkey.Config{Table: fleetkeytest.ARN + "_2", Dial: w.Dial, Roots: w.Roots})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(elsewhere.CloseIdleConnections)
		elsewhere.SetCredentials(fleetkeytest.Credentials)
		_, err = elsewhere.Seed(ctx, epoch(1))
		Expect(err).To(And(MatchError(fleetkey.ErrUnavailable), MatchError(ContainSubstring("ResourceNotFoundException"))))

		before := w.Requests()
		stranger, err := fleetkey.Open(fleetkey.Config{Table: fleetkeytest.ARN, Dial: w.Dial})
		Expect(err).NotTo(HaveOccurred())
		stranger.SetCredentials(fleetkeytest.Credentials)
		Expect(stranger.Record(ctx, seal.KeyID{4}, seal.RequestID{4}, time.Now())).To(MatchError(ContainSubstring("certificate")))
		Expect(w.Requests()).To(Equal(before))
	})
})

var _ = Describe("A put that reaches the table twice", func() {
	It("knows its own record, and no other's", func(ctx SpecContext) {
		// DynamoDB's answer to a condition that failed has the item that is there: here
		// what was just sent, or somebody else's.
		own := true
		server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			sent, err := io.ReadAll(r.Body)
			if err != nil {
				panic(err)
			}
			_, item, _ := bytes.Cut(sent, []byte(`"Item":`))
			item, _, _ = bytes.Cut(item, []byte(`,"ConditionExpression"`))
			if !own {
				item = []byte(`{"id":{"S":"x"},"put_by":{"S":"another"}}`)
			}
			rw.WriteHeader(http.StatusBadRequest)
			_, _ = rw.Write([]byte(`{"__type":"com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException","Item":` + string(item) + `}`))
		}))
		DeferCleanup(server.Close)
		roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		table, err := fleetkey.Open(fleetkey.Config{Table: fleetkeytest.ARN, Roots: roots, Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
		}, Host: "example.com"})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(table.CloseIdleConnections)
		table.SetCredentials(fleetkeytest.Credentials)
		Expect(table.Record(ctx, seal.KeyID{1}, seal.RequestID{1}, time.Now())).To(Succeed())
		own = false
		Expect(table.Record(ctx, seal.KeyID{1}, seal.RequestID{1}, time.Now())).To(MatchError(seal.ErrReplayed))
	})
})

var _ = Describe("Opening the table", func() {
	DescribeTable("wants its ARN, since a name could be of a table in any account", func(name string) {
		_, err := fleetkey.Open(fleetkey.Config{Table: name, Dial: (&fleetkeytest.World{}).Dial})
		Expect(err).To(MatchError(ContainSubstring("want an ARN")))
	},
		Entry(nil, ""), Entry(nil, "fleet_keys"), Entry(nil, "arn:aws:dynamodb:us-east-1::table/fleet_keys"),
		Entry(nil, "arn:aws:dynamodb:us-east-1:444455556666:table/fleet_keys/index/x"), Entry(nil, "arn:aws:kms:us-east-1:444455556666:key/x"),
	)
})
