package xds_test

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/mrgc/mrgc/internal/api"
)

// http2Conn is a tenant's connection, frame by frame (RFC 9113).
type http2Conn struct {
	conn   *tls.Conn
	framer *http2.Framer
	header bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32 // stream
}

func (r *region) connectHTTP2() *http2Conn {
	GinkgoHelper()
	config := r.tenant.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), config)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { _ = conn.Close() })
	Expect(conn.SetDeadline(time.Now().Add(20 * time.Second))).To(Succeed())
	_, err = conn.Write([]byte(http2.ClientPreface))
	Expect(err).NotTo(HaveOccurred())
	c := &http2Conn{conn: conn, framer: http2.NewFramer(conn, conn), next: 1}
	c.hpack = hpack.NewEncoder(&c.header)
	Expect(c.framer.WriteSettings()).To(Succeed())
	return c
}

// get sends a request on a stream of its own.
func (c *http2Conn) get(path string) (stream uint32) {
	GinkgoHelper()
	c.header.Reset()
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: http.MethodGet}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"}, {Name: ":path", Value: path},
	} {
		Expect(c.hpack.WriteField(field)).To(Succeed())
	}
	stream = c.next
	c.next += 2
	Expect(c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: c.header.Bytes(), EndStream: true, EndHeaders: true,
	})).To(Succeed())
	return stream
}

// until reads frames up to the end of a stream, and, if it is to come, a GOAWAY.
func (c *http2Conn) until(stream uint32, comes bool) (goAway *http2.GoAwayFrame) {
	GinkgoHelper()
	for ended := false; !ended || comes && goAway == nil; {
		frame, err := c.framer.ReadFrame()
		Expect(err).NotTo(HaveOccurred())
		switch f := frame.(type) {
		case *http2.GoAwayFrame:
			goAway = &http2.GoAwayFrame{LastStreamID: f.LastStreamID, ErrCode: f.ErrCode}
		case *http2.RSTStreamFrame:
			Expect(f.ErrCode).To(Equal(http2.ErrCodeNo))
		case *http2.HeadersFrame:
			ended = ended || f.StreamID == stream && f.StreamEnded()
		case *http2.DataFrame:
			ended = ended || f.StreamID == stream && f.StreamEnded()
		}
	}
	return goAway
}

var _ = Describe("A connection to a region that drains", func() {
	It("is told to go with its next answer, by a GOAWAY that refuses nothing that was asked", func() {
		r := startRegion(nil, "use1").serving()
		c := r.connectHTTP2()
		Expect(c.until(c.get(api.PathModels), false)).To(BeNil())
		Expect(r.envoy.Post("/healthcheck/fail")).To(Succeed())
		stream := c.get(api.PathModels)
		told := c.until(stream, true)
		Expect(told.ErrCode).To(Equal(http2.ErrCodeNo))
		Expect(told.LastStreamID).To(BeNumerically(">=", stream))

		Expect(r.envoy.Post("/healthcheck/ok")).To(Succeed())
		again := r.connectHTTP2()
		Expect(again.until(again.get(api.PathModels), false)).To(BeNil())
		Expect(again.until(again.get(api.PathModels), false)).To(BeNil())
	})
})
