package netns

import (
	"context"
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// frames carries Ethernet frames between a packet socket and the network stack.
// (The stack has a reader of its own for that, which never gives back the
// descriptors it opens.)
type frames struct {
	socket *os.File
	queue  *channel.Endpoint
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// queued bounds the frames that wait to be sent; more are dropped, as a network
// does, and TCP slows down.
const queued = 4096

// newFrames starts carrying. The endpoint is for the stack; close ends it and
// the socket.
func newFrames(socket *os.File) (*frames, stack.LinkEndpoint) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &frames{
		socket: socket, cancel: cancel,
		queue: channel.New(queued, linkMTU+header.EthernetMinimumSize, tcpip.LinkAddress(macGateway)),
	}
	// Frames on a veth pair have no checksum yet: the kernel leaves it to
	// hardware that is not there.
	f.queue.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	ep := ethernet.New(f.queue)
	f.wg.Go(f.in)
	f.wg.Go(func() { f.out(ctx) })
	return f, ep
}

func (f *frames) in() {
	// The task's kernel may leave segmentation to the hardware too: a frame can
	// be larger than the MTU, but not than an IP packet can be.
	buf := make([]byte, 1<<16+header.EthernetMinimumSize)
	for {
		n, err := f.socket.Read(buf)
		if err != nil {
			return // closed
		}
		if n < header.EthernetMinimumSize {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[:n])})
		f.queue.InjectInbound(0, pkt) // the protocol is in the frame
		pkt.DecRef()
	}
}

func (f *frames) out(ctx context.Context) {
	buf := make([]byte, 0, 1<<16+header.EthernetMinimumSize)
	for {
		pkt := f.queue.ReadContext(ctx)
		if pkt == nil {
			return
		}
		buf = buf[:0]
		for _, s := range pkt.AsSlices() {
			buf = append(buf, s...)
		}
		pkt.DecRef()
		_, _ = f.socket.Write(buf) // a frame that the kernel refuses is lost, as on any network
	}
}

func (f *frames) close() error {
	f.cancel()
	err := f.socket.Close()
	f.wg.Wait()
	f.queue.Close()
	return err
}
