package pubsub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/auth/credentials"
	pubsubapi "cloud.google.com/go/pubsub/v2/apiv1"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"assay.dev/assay/store"
)

// Google's own limits of one message and one request. A record that does not fit
// them never will.
const (
	googleAttributes = 100        // of one message
	googleValue      = 1024       // bytes of an attribute's value
	googleParts      = 64         // that we make of one value; room is left for the others
	googleRequest    = 10_000_000 // bytes of one request, and so of one message
	googleMessages   = 1000       // in one request

	googleReconnect = 2 * time.Second // how long a connection that was lost is waited for
)

var (
	googleProject = regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]{2,99}$`)
	googleTopic   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$`)
)

// googleSender publishes to one topic of Google Cloud Pub/Sub. The client is made
// at the first message: credentials may have to be asked for.
type googleSender struct {
	target Target

	mu     sync.Mutex
	client *pubsubapi.TopicAdminClient // guarded by mu; nil before the first message
	gone   bool                        // guarded by mu: closed for good
}

func openGoogle(t Target) (sender, error) {
	if t.options["credentials"] != "" {
		if _, err := t.secret("credentials"); err != nil {
			return nil, err
		}
	}
	return &googleSender{target: t}, nil
}

// topic is the topic's full name.
func (s *googleSender) topic() string {
	return "projects/" + s.target.Servers[0] + "/topics/" + s.target.Topic
}

// emulator is the host and port of an emulator, which knows neither TLS nor
// credentials; empty: there is none.
func (s *googleSender) emulator() string {
	if e := s.target.options["emulator"]; e != "" {
		return e
	}
	return os.Getenv("PUBSUB_EMULATOR_HOST") // as every client of Pub/Sub has it
}

// api returns the one client, made now if there is none yet.
func (s *googleSender) api(ctx context.Context) (*pubsubapi.TopicAdminClient, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return nil, errors.New("the back end is closed")
	case s.client != nil:
		return s.client, nil
	}
	// The service may take as much as a request may have, and says no by itself.
	opts := []option.ClientOption{option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(2 * googleRequest)))}
	switch emulator := s.emulator(); {
	case emulator != "":
		opts = append(opts, option.WithEndpoint(emulator), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	default:
		if e := s.target.options["endpoint"]; e != "" {
			opts = append(opts, option.WithEndpoint(e))
		}
		if file := s.target.options["credentials"]; file != "" {
			c, err := credentials.DetectDefault(&credentials.DetectOptions{
				CredentialsFile: file, Scopes: []string{"https://www.googleapis.com/auth/pubsub"},
			})
			if err != nil {
				return nil, fmt.Errorf("reading option credentials: %w", err)
			}
			opts = append(opts, option.WithAuthCredentials(c))
		}
	}
	// The client outlives the call that makes it.
	c, err := pubsubapi.NewTopicAdminClient(context.WithoutCancel(ctx), opts...)
	if err != nil {
		return nil, err
	}
	// Whoever keeps records tries again anyway, later, and says why meanwhile.
	c.CallOptions.Publish = nil
	s.client = c
	return c, nil
}

func (s *googleSender) send(ctx context.Context, messages []Message) []result {
	results := make([]result, len(messages))
	client, err := s.api(ctx)
	if err != nil {
		return failAll(len(messages), store.As(store.Configuration, err))
	}
	var batch []*pubsubpb.PubsubMessage
	var of []int // the message that one of the batch is made of
	size := 0
	flush := func() {
		if len(batch) > 0 {
			s.publish(ctx, client, batch, of, results)
		}
		batch, of, size = nil, nil, 0
	}
	for i, m := range messages {
		msg, err := googleMessage(m)
		if err != nil {
			results[i].err = store.As(store.Permanent, err)
			continue
		}
		n := proto.Size(msg) + 16
		if n+len(s.topic()) > googleRequest {
			results[i].err = store.As(store.Permanent, fmt.Errorf("the message has %d bytes and Pub/Sub takes %d; store large statements elsewhere", n, googleRequest))
			continue
		}
		if len(batch) == googleMessages || size+n+len(s.topic()) > googleRequest {
			flush()
		}
		batch, of, size = append(batch, msg), append(of, i), size+n
	}
	flush()
	return results
}

// publish sends one request. Pub/Sub takes all of it or nothing; where it finds
// fault with a message, each is sent by itself, so that one costs only itself.
func (s *googleSender) publish(ctx context.Context, client *pubsubapi.TopicAdminClient, batch []*pubsubpb.PubsubMessage, of []int, results []result) {
	request := &pubsubpb.PublishRequest{Topic: s.topic(), Messages: batch}
	answer, err := client.Publish(ctx, request)
	if status.Code(err) == codes.Unavailable {
		// A connection that was lost is not tried again at once: a service that is back
		// would be reported as down. Messages may be sent twice, as everywhere here.
		again, cancel := context.WithTimeout(ctx, googleReconnect)
		if a, e := client.Publish(again, request, gax.WithGRPCOptions(grpc.WaitForReady(true))); e == nil {
			answer, err = a, nil
		}
		cancel()
	}
	if err == nil && len(answer.GetMessageIds()) != len(batch) {
		err = fmt.Errorf("Pub/Sub acknowledged %d of %d messages", len(answer.GetMessageIds()), len(batch))
	}
	if status.Code(err) == codes.InvalidArgument && len(batch) > 1 {
		for i := range batch {
			s.publish(ctx, client, batch[i:i+1], of[i:i+1], results)
		}
		return
	}
	for i, at := range of {
		if err != nil {
			results[at].err = s.fault(err)
			continue
		}
		results[at].where = fmt.Sprintf("gcppubsub:%s, message %s", s.topic(), answer.MessageIds[i])
	}
}

// fault says what class of trouble an answer is.
func (s *googleSender) fault(err error) error {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return store.As(store.Configuration, fmt.Errorf("publishing to %s was refused; its account needs the role roles/pubsub.publisher: %w", s.topic(), err))
	case codes.NotFound:
		return store.As(store.Configuration, fmt.Errorf("there is no topic %s; create it: %w", s.topic(), err))
	case codes.FailedPrecondition:
		return store.As(store.Configuration, err)
	case codes.InvalidArgument:
		return store.As(store.Permanent, fmt.Errorf("Pub/Sub does not take the message; has the topic a schema? %w", err))
	}
	return store.As(store.Transient, err)
}

func (s *googleSender) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}

// googleMessage is a message as Pub/Sub takes it: metadata are its attributes,
// whose values have 1,024 bytes at most. Of longer ones, those that the body of a
// statement holds already (payload, signature) are left out, and the others come in
// parts, NAME.0, NAME.1, …, to be joined.
func googleMessage(m Message) (*pubsubpb.PubsubMessage, error) {
	out := &pubsubpb.PubsubMessage{Data: m.Body, Attributes: map[string]string{}}
	inBody := m.Metadata["image"] == ""
	for _, name := range slices.Sorted(maps.Keys(m.Metadata)) {
		value := m.Metadata[name]
		if len(value) <= googleValue {
			out.Attributes[name] = value
			continue
		}
		if inBody && (name == "payload" || name == "signature") {
			continue
		}
		parts := pieces(value, googleValue)
		if len(parts) > googleParts {
			return nil, fmt.Errorf("metadata %s has %d bytes and Pub/Sub has room for %d; store such records elsewhere", name, len(value), googleParts*googleValue)
		}
		for i, p := range parts {
			out.Attributes[name+"."+strconv.Itoa(i)] = p
		}
	}
	if n := len(out.Attributes); n > googleAttributes {
		return nil, fmt.Errorf("the message needs %d attributes and Pub/Sub takes %d; store such records elsewhere", n, googleAttributes)
	}
	return out, nil
}

// pieces cuts a string into parts of at most so many bytes, never inside a
// character: attributes are text.
func pieces(s string, most int) []string {
	var out []string
	for len(s) > most {
		n := most
		for n > most-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		out, s = append(out, s[:n]), s[n:]
	}
	return append(out, s)
}

// googleTarget reads gcppubsub://PROJECT/TOPIC, or the topic's full name instead.
func googleTarget(t Target, hosts string) (Target, error) {
	project, topic := hosts, t.Topic
	if hosts == "projects" {
		var ok bool
		if project, topic, ok = strings.Cut(t.Topic, "/topics/"); !ok {
			return Target{}, errors.New("want gcppubsub://projects/PROJECT/topics/TOPIC, or gcppubsub://PROJECT/TOPIC")
		}
	}
	if !googleProject.MatchString(project) {
		return Target{}, fmt.Errorf("%.100q is no Google Cloud project's id", project)
	}
	if !googleTopic.MatchString(topic) || strings.HasPrefix(topic, "goog") {
		return Target{}, fmt.Errorf("%.300q is no name of a Pub/Sub topic", topic)
	}
	t.Servers, t.Topic = []string{project}, topic
	return t, nil
}
