package cloudwatch_test

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/cloudwatch"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

func TestCloudWatch(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "controller/cloudwatch")
}

var minute = time.Date(2026, time.March, 14, 9, 26, 0, 0, time.UTC)

func minutes(count int) (all []state.Record[state.Minute]) {
	for i := range count {
		all = append(all, state.Record[state.Minute]{
			Key: state.MinuteKey("use1", minute.Add(time.Duration(i)*time.Minute)),
			Value: state.Minute{
				Samples: 6, Instances: 4, Ready: 3.5, Draining: 0.5, Running: 12, Queued: 1, Slots: 32,
				Lag: map[fleet.Region]float64{"use2": 0.25, "usw2": 7},
			},
		})
	}
	return all
}

// serve answers in the place of CloudWatch, by its Query protocol.
func serve(ctx context.Context, answer func(w http.ResponseWriter, form url.Values)) *cloudwatch.Publisher {
	GinkgoHelper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer GinkgoRecover()
		if r.Header.Get("Content-Encoding") == "gzip" { // as the SDK does with much
			unpacked, err := gzip.NewReader(r.Body)
			Expect(err).NotTo(HaveOccurred())
			r.Body = io.NopCloser(unpacked)
		}
		Expect(r.ParseForm()).To(Succeed())
		Expect(r.Header.Get("Authorization")).To(ContainSubstring("/us-west-2/monitoring/"))
		answer(w, r.PostForm)
	}))
	DeferCleanup(server.Close)
	p, err := cloudwatch.Open(ctx, cloudwatch.Config{Namespace: "MRGC", Settings: awsclient.Settings{
		Region: "us-west-2", Endpoint: server.URL, Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	}})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(p.Close)
	return p
}

// datum is one metric of a form, as "Name{Region=use1,From=use2} 0.25 Seconds at".
func datum(form url.Values, number int) string {
	prefix := "MetricData.member." + strconv.Itoa(number) + "."
	var dimensions []string
	for i := 1; form.Has(prefix + "Dimensions.member." + strconv.Itoa(i) + ".Name"); i++ {
		one := prefix + "Dimensions.member." + strconv.Itoa(i)
		dimensions = append(dimensions, form.Get(one+".Name")+"="+form.Get(one+".Value"))
	}
	return form.Get(prefix+"MetricName") + "{" + strings.Join(dimensions, ",") + "} " + form.Get(prefix+"Value") + " " +
		form.Get(prefix+"Unit") + " " + form.Get(prefix+"Timestamp")
}

var _ = Describe("A region's minutes", func() {
	It("are metrics of the region, and the lag of each other region's rows", func(ctx SpecContext) {
		var forms []url.Values
		p := serve(ctx, func(_ http.ResponseWriter, form url.Values) { forms = append(forms, form) })
		Expect(p.Publish(ctx, "use1", minutes(2))).To(Succeed())
		Expect(forms).To(HaveLen(1))
		Expect(forms[0].Get("Action")).To(Equal("PutMetricData"))
		Expect(forms[0].Get("Namespace")).To(Equal("MRGC"))
		var got []string
		for i := 1; forms[0].Has("MetricData.member." + strconv.Itoa(i) + ".MetricName"); i++ {
			got = append(got, datum(forms[0], i))
		}
		Expect(got).To(HaveLen(16))
		Expect(got[:8]).To(HaveExactElements(
			"Instances{Region=use1} 4 Count 2026-03-14T09:26:00Z",
			"InstancesReady{Region=use1} 3.5 Count 2026-03-14T09:26:00Z",
			"InstancesDraining{Region=use1} 0.5 Count 2026-03-14T09:26:00Z",
			"RequestsRunning{Region=use1} 12 Count 2026-03-14T09:26:00Z",
			"RequestsQueued{Region=use1} 1 Count 2026-03-14T09:26:00Z",
			"Slots{Region=use1} 32 Count 2026-03-14T09:26:00Z",
			"ReplicationLag{Region=use1,From=use2} 0.25 Seconds 2026-03-14T09:26:00Z",
			"ReplicationLag{Region=use1,From=usw2} 7 Seconds 2026-03-14T09:26:00Z"))
		Expect(got[15]).To(HaveSuffix("2026-03-14T09:27:00Z"))
	})

	It("are as many calls as CloudWatch wants, and none for nothing", func(ctx SpecContext) {
		calls := 0
		p := serve(ctx, func(http.ResponseWriter, url.Values) { calls++ })
		Expect(p.Publish(ctx, "use1", nil)).To(Succeed())
		Expect(calls).To(BeZero())
		Expect(p.Publish(ctx, "use1", minutes(126))).To(Succeed())
		Expect(calls).To(Equal(2), "1,008 metrics")
	})

	It("that cannot be published are an error that says where", func(ctx SpecContext) {
		p := serve(ctx, func(w http.ResponseWriter, _ url.Values) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>`))
		})
		Expect(p.Publish(ctx, "use1", minutes(1))).To(MatchError(And(HavePrefix("CloudWatch namespace MRGC"), ContainSubstring("not you"))))
		bad := minutes(1)
		bad[0].Key.Sort = "latest"
		Expect(p.Publish(ctx, "use1", bad)).To(MatchError(ContainSubstring("latest")))
	})
})

var _ = DescribeTable("Refused is", func(ctx SpecContext, change func(*cloudwatch.Config), why string) {
	cfg := cloudwatch.Config{Namespace: "MRGC", Settings: awsclient.Settings{Region: "us-east-1"}}
	change(&cfg)
	_, err := cloudwatch.Open(ctx, cfg)
	Expect(err).To(MatchError(ContainSubstring(why)))
},
	Entry("no namespace", func(c *cloudwatch.Config) { c.Namespace = "" }, `namespace ""`),
	Entry("AWS's namespace", func(c *cloudwatch.Config) { c.Namespace = "AWS/EC2" }, "AWS/"),
	Entry("http to another machine", func(c *cloudwatch.Config) { c.Endpoint = "http://192.0.2.1" }, "want https"),
)
